package quant

// scaleAndMin unpacks the j-th of eight six-bit scales and minima of a Q4_K or Q5_K block.
func scaleAndMin(scales []byte, j int) (scale, minimum float32) {
	if j < 4 {
		return float32(scales[j] & 63), float32(scales[j+4] & 63)
	}
	return float32(scales[j+4]&15 | scales[j-4]>>2&0x30),
		float32(scales[j+4]>>4 | scales[j]>>2&0x30)
}

func decodeQ4_K(dst []float32, src []byte) {
	for ; len(src) >= 144; dst, src = dst[256:], src[144:] {
		d, dmin, scales, qs := half(src), half(src[2:]), src[4:16], src[16:144]
		for j := range 8 {
			scale, minimum := scaleAndMin(scales, j)
			dl, ml := d*scale, dmin*minimum
			var value [16]float32
			for q := range value {
				value[q] = float32(dl*float32(q)) - ml
			}
			out, shift := dst[j*32:j*32+32:j*32+32], j%2*4
			for i, q := range qs[j/2*32 : j/2*32+32] {
				out[i] = value[q>>shift&15]
			}
		}
	}
}

func decodeQ5_K(dst []float32, src []byte) {
	for ; len(src) >= 176; dst, src = dst[256:], src[176:] {
		d, dmin, scales, fifth, qs := half(src), half(src[2:]), src[4:16], src[16:48], src[48:176]
		for j := range 8 {
			scale, minimum := scaleAndMin(scales, j)
			dl, ml := d*scale, dmin*minimum
			var value [32]float32
			for q := range value {
				value[q] = float32(dl*float32(q)) - ml
			}
			out, shift := dst[j*32:j*32+32:j*32+32], j%2*4
			for i, q := range qs[j/2*32 : j/2*32+32] {
				out[i] = value[q>>shift&15|fifth[i]>>j&1<<4]
			}
		}
	}
}

func decodeQ6_K(dst []float32, src []byte) {
	for ; len(src) >= 210; dst, src = dst[256:], src[210:] {
		low, high, scales, d := src[:128], src[128:192], src[192:208], half(src[208:])
		for j := range 8 { // 32 values each: bytes of one half of low and high, at this shift
			at, shift, shift2 := j/4*64+j%2*32, j%4/2*4, j%4*2
			dl := [2]float32{d * float32(int8(scales[2*j])), d * float32(int8(scales[2*j+1]))}
			out, top := dst[j*32:j*32+32:j*32+32], high[j/4*32:j/4*32+32]
			for i, q := range low[at : at+32] {
				out[i] = dl[i/16] * float32(int8(q>>shift&15|top[i]>>shift2&3<<4)-32)
			}
		}
	}
}

func decodeQ2_K(dst []float32, src []byte) {
	for ; len(src) >= 84; dst, src = dst[256:], src[84:] {
		scales, qs, d, dmin := src[:16], src[16:80], half(src[80:]), half(src[82:])
		for g, scale := range scales { // 16 numbers each
			dl, ml := d*float32(scale&15), dmin*float32(scale>>4)
			out, shift := dst[g*16:g*16+16:g*16+16], g%8/2*2
			at := g/8*32 + g%2*16
			for i, q := range qs[at : at+16] {
				out[i] = float32(dl*float32(q>>shift&3)) - ml
			}
		}
	}
}

func decodeQ3_K(dst []float32, src []byte) {
	for ; len(src) >= 110; dst, src = dst[256:], src[110:] {
		third, qs, scales, d := src[:32], src[32:96], src[96:108], half(src[108:])
		for g := range 16 {
			// four bits of a scale lie in the first eight bytes, two in the last four
			scale := scales[g%8]>>(g/8*4)&15 | scales[8+g%4]>>(g/4*2)&3<<4
			dl := d * float32(int(scale)-32)
			out, shift := dst[g*16:g*16+16:g*16+16], g%8/2*2
			at, bit := g/8*32+g%2*16, g/2
			for i, q := range qs[at : at+16] {
				high := int(third[g%2*16+i] >> bit & 1)
				out[i] = dl * float32(int(q>>shift&3)+4*high-4)
			}
		}
	}
}
