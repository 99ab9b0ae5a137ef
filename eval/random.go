package eval

import "math/bits"

// random is Python's random.Random: a Mersenne Twister (MT19937) and the methods over it that
// lm-eval draws examples and resamples with. The draws must be Python's, because examples are part
// of a prompt and the bootstrap's result is reported with all digits.
type random struct {
	state [624]uint32
	at    int
}

// newRandom returns random.Random(seed) for a seed of 0 or more.
func newRandom(seed uint64) *random {
	key := []uint32{uint32(seed)}
	if seed>>32 != 0 {
		key = append(key, uint32(seed>>32))
	}
	r := &random{}
	r.fill(19650218)
	i, j := 1, 0
	next := func() {
		if i++; i == len(r.state) {
			r.state[0] = r.state[len(r.state)-1]
			i = 1
		}
	}
	mixed := func(factor uint32) uint32 {
		return r.state[i] ^ (r.state[i-1]^r.state[i-1]>>30)*factor
	}
	for range max(len(r.state), len(key)) {
		r.state[i] = mixed(1664525) + key[j] + uint32(j)
		next()
		j = (j + 1) % len(key)
	}
	for range len(r.state) - 1 {
		r.state[i] = mixed(1566083941) - uint32(i)
		next()
	}
	r.state[0] = 1 << 31
	return r
}

func (r *random) fill(seed uint32) {
	r.state[0] = seed
	for i := 1; i < len(r.state); i++ {
		r.state[i] = 1812433253*(r.state[i-1]^r.state[i-1]>>30) + uint32(i)
	}
	r.at = len(r.state)
}

// next returns the next 32 bits.
func (r *random) next() uint32 {
	n := len(r.state)
	if r.at >= n {
		for i := range n {
			y := r.state[i]&(1<<31) | r.state[(i+1)%n]&(1<<31-1)
			r.state[i] = r.state[(i+397)%n] ^ y>>1 ^ (y&1)*0x9908b0df
		}
		r.at = 0
	}
	y := r.state[r.at]
	r.at++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}

// float is random(): from 0 up to but not 1.
func (r *random) float() float64 {
	a, b := r.next()>>5, r.next()>>6
	return (float64(a)*(1<<26) + float64(b)) / (1 << 53)
}

// below is _randbelow(n): a whole number from 0 to n-1, for n of 1 to 2^31.
func (r *random) below(n int) int {
	shift := 32 - bits.Len(uint(n))
	for {
		if v := int(r.next() >> shift); v < n {
			return v
		}
	}
}

// sample is sample(range(pool), n): n different indices in random order. n is at most pool.
func (r *random) sample(pool, n int) []int {
	chosen := make([]int, n)
	// Python keeps a list of the pool if that takes less memory than a set of what is chosen.
	most := 21
	if n > 5 {
		size := 1
		for size < 3*n {
			size *= 4
		}
		most += size
	}
	if pool <= most {
		left := make([]int, pool)
		for i := range left {
			left[i] = i
		}
		for i := range chosen {
			j := r.below(pool - i)
			chosen[i] = left[j]
			left[j] = left[pool-i-1]
		}
		return chosen
	}
	taken := make(map[int]bool, n)
	for i := range chosen {
		j := r.below(pool)
		for taken[j] {
			j = r.below(pool)
		}
		taken[j] = true
		chosen[i] = j
	}
	return chosen
}
