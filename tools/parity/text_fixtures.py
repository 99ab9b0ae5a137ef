"""Make testdata/text: small tokenizers of every supported structure, trained
on Go's sources and a few lines of other scripts, with the ids, texts and chats
that Hugging Face gives for them.

    python tools/parity/text_fixtures.py

Needs tokenizers, transformers and sentencepiece. The files are committed; run
it again only to add a structure.
"""

import io
import json
import os
import random
import shutil

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from text_tokenizers import BITS, CHATS, ROOT, corpus, from_sentencepiece, strings

OUT = os.path.join(ROOT, "testdata", "text")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LINES = [
    "The quick brown fox jumps over the lazy dog. It's the user's answer; they've said I'll do.",
    "Wir fahren über die Straße. Ça va très bien. ¿Qué tal? Добрый день, мир. Καλημέρα κόσμε.",
    "你好，世界。今天天气很好。 日本語のテキスト。 한국어 문장입니다. नमस्ते दुनिया। สวัสดีชาวโลก",
]

LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SMOLLM_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2_CHAT = """{%- if messages[0]['role'] == 'system' -%}
    {%- set system_message = messages[0]['content'] | trim + "\\n\\n" -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system_message = '' -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ bos_token + '[INST] ' + (system_message if loop.index0 == 0 else '') + message['content'].strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' -%}
        {{ ' ' + message['content'] + ' ' + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""


def train(normalizer, pre, decoder, post, special, size=700, **model):
    tok = Tokenizer(models.BPE(**model))
    if normalizer:
        tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    tok.decoder = decoder
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False, max_token_length=16,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if not model.get("byte_fallback") else [],
    )
    text = [line for t in corpus()[-12:] for line in t.split("\n")][:4000] + LINES * 20
    tok.train_from_iterator(text, trainer)
    if post:
        tok.post_processor = post(tok)
    return tok


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def bos(token):
    return lambda tok: processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, tok.token_to_id(token))])


def edit(tok, change):
    spec = json.loads(tok.to_str())
    change(spec)
    return Tokenizer.from_str(json.dumps(spec))


def tokenizers():
    """name, tokenizer, special tokens by role, chat template."""
    seq = pre_tokenizers.Sequence
    gpt2 = train(None, byte_level(True), decoders.ByteLevel(), None, ["<|endoftext|>"])
    gpt2.add_tokens([
        AddedToken("<mask>", lstrip=True, special=True), AddedToken("<r>", rstrip=True, normalized=False),
        AddedToken("whole", single_word=True, normalized=False), AddedToken("<r><r>", normalized=False),
    ])
    yield "gpt2", gpt2, dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>"), None

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    llama3 = train(None, seq([split(WORDS % r"\p{N}{1,3}"), byte_level()]), decoders.ByteLevel(), bos(names[0]), names)
    llama3 = edit(llama3, lambda s: s["model"].update(ignore_merges=True))
    yield "llama3", llama3, dict(bos_token=names[0], eos_token=names[4]), LLAMA3_CHAT

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    smollm = train(None, seq([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]), decoders.ByteLevel(), None, names)

    def drop(s):  # SmolLM2's vocabulary lacks some bytes
        for b in "ðñòó":
            del s["model"]["vocab"][b]
        s["model"]["merges"] = [m for m in s["model"]["merges"] if not set("ðñòó") & set("".join(m))]
        for t in [t for t in s["model"]["vocab"] if set("ðñòó") & set(t)]:
            del s["model"]["vocab"][t]
        s["model"]["unk_token"] = names[0]

    yield "smollm", edit(smollm, drop), dict(bos_token=names[1], eos_token=names[2], pad_token=names[2], unk_token=names[0]), SMOLLM_CHAT

    qwen2 = train(normalizers.NFC(), seq([split(WORDS % r"\p{N}"), byte_level()]), decoders.ByteLevel(), None, names)
    yield "qwen2", qwen2, dict(eos_token=names[2], pad_token=names[0]), SMOLLM_CHAT

    cjk = seq([split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+(?!\S)|\s+"), byte_level()])
    yield "regexp", train(None, cjk, decoders.ByteLevel(), None, ["<s>"]), dict(bos_token="<s>"), None

    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    roles = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")

    def plain_bytes(s):
        s["added_tokens"] = s["added_tokens"][:3]

    # Trained with words that begin with "▁"; then the text is not cut, as in Llama 2's file.
    cut = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    llama2 = edit(train(None, cut, decoders.Sequence(back), bos("<s>"), names, 900, unk_token="<unk>", fuse_unk=True, byte_fallback=True), plain_bytes)
    # SentencePiece puts runs of spaces in the vocabulary as well.
    yield "metaspace", llama2, roles, None
    old = Tokenizer.from_str(llama2.to_str())
    old.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spec = json.loads(old.to_str())
    spec["pre_tokenizer"] = None
    yield "llama2", Tokenizer.from_str(json.dumps(spec)), roles, LLAMA2_CHAT


def golden(tok, hf, rng, count=60):
    texts = strings(rng, tok, [t.content for t in tok.get_added_tokens_decoder().values()], count)
    texts = [t for t in texts if len(t) < 120] + BITS
    cases = [{
        "text": t, "plain": tok.encode(t, add_special_tokens=False).ids, "special": tok.encode(t).ids,
        "decoded": tok.decode(tok.encode(t).ids, skip_special_tokens=False), "skipped": tok.decode(tok.encode(t).ids),
    } for t in texts]
    chats = []
    if hf is not None and hf.chat_template:
        for messages in CHATS + [[{"role": "assistant", "content": "first"}]]:
            for generate in (False, True):
                try:
                    want = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
                except Exception:
                    want = None
                chats.append({"messages": messages, "generate": generate, "want": want})
    return {"cases": cases, "chats": chats}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    rng = random.Random(7)
    for name, tok, roles, template in tokenizers():
        folder = os.path.join(OUT, name)
        os.makedirs(folder)
        spec = json.loads(tok.to_str())
        json.dump(spec, open(os.path.join(folder, "tokenizer.json"), "w"), ensure_ascii=False, separators=(",", ":"))
        config = dict(roles, tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False)
        if template:
            config["chat_template"] = template
        json.dump(config, open(os.path.join(folder, "tokenizer_config.json"), "w"), ensure_ascii=False, indent=1)
        tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        hf = AutoTokenizer.from_pretrained(folder)
        json.dump(golden(tok, hf, rng), open(os.path.join(folder, "golden.json"), "w"), ensure_ascii=False, separators=(",", ":"))
    # a SentencePiece model of Llama's kind
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([l for t in corpus()[-6:] for l in t.split("\n") if l] + LINES * 5), model_writer=model,
        vocab_size=800, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True,
        num_threads=1, minloglevel=2, character_coverage=0.995,
    )
    folder = os.path.join(OUT, "sentencepiece")
    os.makedirs(folder)
    path = os.path.join(folder, "tokenizer.model")
    open(path, "wb").write(model.getvalue())
    json.dump(golden(from_sentencepiece(path), None, rng), open(os.path.join(folder, "golden.json"), "w"), ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
