package eval

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Probe hides a fact in long texts and asks for it.
type Probe struct {
	// Kind is "passkey", a number among sentences that repeat, or "needle", a word among sentences
	// that do not.
	Kind string
	// Lengths are the numbers of tokens of the texts, with the question. A text is shorter by less
	// than a sentence.
	Lengths []int
	// Depths are the places of the fact: from 0, the beginning, to 100.
	Depths []float64
	// Repeats is the number of facts that are asked for at each length and depth.
	Repeats int
	Seed    uint64
}

// Kinds lists the kinds of probes.
var Kinds = []string{"passkey", "needle"}

// Recall says how well a fact is found at one length and depth.
type Recall struct {
	Kind   string  `json:"kind"`
	Length int     `json:"length"`
	Depth  float64 `json:"depth"`
	Asked  int     `json:"asked"`
	Found  int     `json:"found"` // the most likely tokens are the fact
	// LogLikelihood is the mean log-likelihood of the fact in nats.
	LogLikelihood float64 `json:"log_likelihood"`
}

// probeText is a text that hides a fact.
type probeText struct {
	fact, question, answer string
	filler                 func(i int) string // the i-th sentence around the fact
}

// Probe asks for facts at every length and depth. done is told how many of how many questions have
// been answered; it may be nil.
func (l *LM) Probe(ctx context.Context, p Probe, done func(done, total int)) ([]Recall, error) {
	if !slices.Contains(Kinds, p.Kind) {
		return nil, fmt.Errorf("there is no probe %q, only %s", p.Kind, strings.Join(Kinds, ", "))
	}
	var recalls []Recall
	var pairs []Pair
	for _, length := range p.Lengths {
		if length > l.MaxLength {
			return nil, fmt.Errorf("a text of %d tokens is longer than the %d that the model "+
				"reads at once", length, l.MaxLength)
		}
		for _, depth := range p.Depths {
			if !(depth >= 0 && depth <= 100) {
				return nil, fmt.Errorf("the depth is %g, expected 0 to 100", depth)
			}
			recalls = append(recalls, Recall{Kind: p.Kind, Length: length, Depth: depth})
			for repeat := range p.Repeats {
				pair, err := l.hide(p, p.text(repeat), length, depth)
				if err != nil {
					return nil, err
				}
				pairs = append(pairs, pair)
			}
		}
	}
	count := 0
	list, err := l.Likelihoods(ctx, pairs, func(n int) {
		if count += n; done != nil {
			done(count, len(pairs))
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range recalls {
		r := &recalls[i]
		for _, a := range list[i*p.Repeats : (i+1)*p.Repeats] {
			r.Asked++
			r.LogLikelihood += a.Sum / float64(p.Repeats)
			if a.Greedy {
				r.Found++
			}
		}
	}
	return recalls, nil
}

var probeWords = struct{ secrets, people, deeds, places, times []string }{
	strings.Fields("anchor basket candle feather garden hammer island jacket kettle ladder " +
		"marble needle orange pepper ribbon saddle ticket violin window yellow"),
	strings.Split("The baker|An old sailor|My neighbour|The teacher|A tired clerk|The twins|"+
		"Her cousin|The postman|A young doctor|The gardener", "|"),
	strings.Split("counted the boats|mended a fence|wrote a long letter|sold three chairs|"+
		"waited for the bus|painted the door|cooked a thin soup|looked for the cat|"+
		"read the newspaper|fed the pigeons", "|"),
	strings.Split("by the river|behind the mill|at the station|near the chapel|in the yard|"+
		"on the hill|under the bridge|across the square", "|"),
	strings.Split("before noon|after the rain|on Monday|late at night|in early spring|"+
		"during the fair|at dawn", "|"),
}

// text is the fact of a repeat and what surrounds it. It depends on the seed alone.
func (p Probe) text(repeat int) probeText {
	r := newRandom(p.Seed + uint64(repeat))
	if p.Kind == "passkey" {
		key := 10_000 + r.below(90_000)
		sentences := []string{"The tide comes in.", "The tide goes out.",
			"Gulls circle over the pier.", "A bell rings in the fog.", "Nobody is in a hurry here."}
		return probeText{
			fact:     fmt.Sprintf("The pass key is %d. Remember it.", key),
			question: "What is the pass key? The pass key is", answer: fmt.Sprintf(" %d", key),
			filler: func(i int) string { return sentences[i%len(sentences)] },
		}
	}
	w := probeWords
	secret := w.secrets[r.below(len(w.secrets))]
	var made []string
	return probeText{
		fact:     "The keeper's secret word is " + secret + ".",
		question: "What is the keeper's secret word? The keeper's secret word is",
		answer:   " " + secret,
		filler: func(i int) string {
			pick := func(list []string) string { return list[r.below(len(list))] }
			for len(made) <= i {
				made = append(made, pick(w.people)+" "+pick(w.deeds)+" "+pick(w.places)+" "+
					pick(w.times)+".")
			}
			return made[i]
		},
	}
}

// hide writes a text of at most length tokens with the fact at a depth.
func (l *LM) hide(p Probe, t probeText, length int, depth float64) (Pair, error) {
	size := func(s string) int { return len(l.tok.Encode(" "+s, false)) }
	left := length - 1 - size(t.fact) - size(t.question) - size(t.answer)
	count := 0
	for left -= size(t.filler(count)); left >= 0; left -= size(t.filler(count)) {
		count++
	}
	for ; count >= 0; count-- {
		at := int(float64(count)*depth/100 + 0.5)
		var parts []string
		for i := range count {
			if i == at {
				parts = append(parts, t.fact)
			}
			parts = append(parts, t.filler(i))
		}
		if at == count {
			parts = append(parts, t.fact)
		}
		pair := Pair{strings.Join(append(parts, t.question), " "), t.answer}
		before, after, err := l.split(pair)
		if err != nil {
			return Pair{}, err
		}
		if len(before)+len(after) <= length {
			return pair, nil
		}
	}
	return Pair{}, fmt.Errorf("a text of %d tokens has no room for the %s and its question", length,
		p.Kind)
}
