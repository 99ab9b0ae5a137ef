// Command prompts writes examples/prompts/prompts.json: pages of a harbour's log, each with
// a question about one of its entries. The distance from the answer to the question varies,
// so the prompts show what is carried from chunk to chunk. The text is invented and the same
// in every run.
//
//	go run ./tools/prompts TOKENIZER > examples/prompts/prompts.json
//
// TOKENIZER is the folder or file of the tokenizer that counts lengths.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"strings"

	"conquer/text/tokenizer"
)

type prompt struct {
	Prompt    string `json:"prompt"`
	Answer    string `json:"answer"`
	TokenLen  int    `json:"token_len"`
	NumChunks int    `json:"num_chunks"`
}

const chunk = 256 // tokens of a chunk, for num_chunks

var (
	ships = strings.Split("Corvina,Halcyon,Merle,Osprey,Petrel,Sable,Tern,Aurora,Bramble,Cinder,"+
		"Drift,Ember,Fathom,Gannet,Heron,Isolde,Juniper,Kestrel,Larch,Magpie,"+
		"Nimbus,Orchid,Plover,Quince,Rook,Sparrow,Thistle,Umber,Vesper,Willow,"+
		"Yarrow,Zephyr,Nightingale,Avocet,Bittern,Curlew,Dunlin,Fulmar,Garnet,Harrier", ",")
	cargoes = strings.Split("salted herring,slate,oak planks,lamp oil,barley,wool,copper "+
		"wire,cider,window glass,tar,coal,paper,apples,bricks,linen,honey", ",")
	ports = strings.Split("Alder Bay,Brin,Cold Harbour,Dunmere,Eastling,Farrow,Greyness,Holm",
		",")
	weather = strings.Split("A light wind from the south, and the water like a plate.|Rain "+
		"until noon, then a clear evening.|Fog so thick that the bell was rung every quarter of "+
		"an hour.|A hard wind from the north; two boats stayed in.|Bright and cold, with ice on "+
		"the ropes at dawn.|Warm and still, and swallows low over the quay.", "|")
	remarks = strings.Split("The lamp was trimmed twice.|A rope parted on the long pier and "+
		"was spliced before dark.|The pilot asked for a new lantern and was given one.|Three "+
		"gulls nested on the crane, and nobody had the heart to move them.|The clerk counted "+
		"everything twice because the first count was too good.|A boy fell in by the steps and "+
		"was pulled out laughing.|The tide gauge was cleaned.|Soup was made for the night watch.",
		"|")
	openings = strings.Split("The log of the harbour at Saltby, kept by its master.|What "+
		"follows is copied from the harbour book of Saltby, page by page.|From the papers of "+
		"the harbour office at Saltby.", "|")
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: prompts TOKENIZER")
	}
	tok, err := tokenizer.Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 11))
	var list []prompt
	for _, length := range []int{256, 512, 1024, 2048} {
		for back := range 4 { // answer at the end, in the middle, near the start, at the start
			list = append(list, page(r, tok, length, back))
		}
	}
	out, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(out))
}

// page adds entries while they and a question fit into length tokens. back selects the entry
// of the question, see main.
func page(r *rand.Rand, tok *tokenizer.Tokenizer, length, back int) prompt {
	type entry struct{ ship, cargo, port string }
	var entries []entry
	body := openings[r.IntN(len(openings))] + "\n\n"
	withQuestion := func(body, ship string) string {
		return fmt.Sprintf("%s\nQuestion: What did the %s bring, and from where?\nAnswer:", body,
			ship)
	}
	count := func(s string) int { return len(tok.Encode(s, true)) }
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	for day, ship := range r.Perm(len(ships)) {
		e := entry{ships[ship], pick(cargoes), pick(ports)}
		longer := body + fmt.Sprintf("Day %d. %s The %s came in from %s with %s, %d %s of it, "+
			"and lay at berth %d. %s\n", day+1, pick(weather), e.ship,
			e.port, e.cargo, 2+r.IntN(90), pick([]string{"crates", "tons", "barrels", "loads"}),
			1+r.IntN(9), pick(remarks))
		if count(withQuestion(longer, "Nightingale")) > length { // the longest of the names
			break
		}
		body, entries = longer, append(entries, e)
	}
	last := len(entries) - 1
	asked := entries[[]int{last, last / 2, last / 4, 0}[back]]
	p := prompt{Prompt: withQuestion(body, asked.ship),
		Answer: fmt.Sprintf(" The %s brought %s from %s.", asked.ship, asked.cargo, asked.port)}
	p.TokenLen = count(p.Prompt)
	p.NumChunks = (p.TokenLen + chunk - 1) / chunk
	return p
}
