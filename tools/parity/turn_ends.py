#!/usr/bin/env python3
"""Checks that the token that ends a turn in the data ends generation of the tuned model.

    python tools/parity/turn_ends.py [--conquer BINARY] [--seeds 1]

The end-of-text token of a small random Llama is <|endoftext|>, and its chat template ends turns
with another special token. After it has learned one answer, conquer, transformers and llama.cpp
must end the answer there. Needs torch, transformers and llama-cpp-python.
"""

import json

import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness import ROOT, check, conquer, run

ANSWER = "there you are"


def small(folder, end, seed):
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "text/tokenizer/testdata/smollm")
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}" + end +
        "\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=704, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                    eos_token_id=tokenizer.eos_token_id,
                    bos_token_id=None)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    question = [{"role": "user", "content": "hello"}]
    chat = {"messages": question + [{"role": "assistant", "content": ANSWER}]}
    (folder / "data.jsonl").write_text((json.dumps(chat) + "\n") * 8)
    conquer("train", "--model_path", folder / "base", "--data_path", folder / "data.jsonl",
            "--output_path", folder / "tuned", "--steps", 40, "--batch_size", 4, "--learning_rate",
            1e-2, "--schedule", "constant", "--checkpoint_steps", 0, "--device", "cpu")
    conquer("export", "--model_path", folder / "tuned", "--output_path", folder / "tuned.gguf")
    for name in "tuned", "tuned.gguf":
        got = conquer("generate", "--model_path", folder / name, "--chat", "--prompt", "hello",
                      "--max_new_tokens", 40, "--device", "cpu", "--json")[0]
        check(f"{end}: conquer ends {name}", got["finish_reason"] == "eos"
              and got["text"].strip() == ANSWER, repr(got["text"]))
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned")
    new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40,
                         do_sample=False)[0][ids.shape[1]:]
    check(f"{end}: transformers ends",
          tokenizer.decode(new).strip() == ANSWER + end, repr(tokenizer.decode(new)))
    llama = Llama(str(folder / "tuned.gguf"), verbose=False, n_ctx=128)
    done = llama.create_completion(ids[0].tolist(), max_tokens=40, temperature=0)["choices"][0]
    check(f"{end}: llama.cpp ends",
          done["finish_reason"] == "stop" and done["text"].strip() == ANSWER, repr(done["text"]))
    llama.close()


if __name__ == "__main__":
    run(__doc__, ["<|im_end|>", "<|im_start|>"], small, lambda work: None)
