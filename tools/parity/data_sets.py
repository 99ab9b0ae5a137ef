"""Compares data sets with `datasets`, and loss masks with transformers.

    data_sets.py [--count 60] [--seed 1]

It draws random tables of chats, instructions and prompts, writes each as JSON lines and in the
formats that `datasets` and pyarrow write, also with other names for the columns, and lets `go test
./text/dataset -run Peers` read them all, first without and then from a cache of encoded samples:
every file of a table must give the same samples. It also renders chats with templates that
mark the assistant's text with {% generation %}: tokens and masks must be those of
apply_chat_template.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = ["Hello", "the lamp", "wörld", "日本", "\n", "  ", "a\tb", "\"quoted\"", "<b>", "</s>", "7",
         "'"]


def text(draw):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6))) + draw.choice(["", "."])


def call(draw):
    arguments = {"place": text(draw)}
    if draw.random() < 0.5:
        arguments = {"count": draw.randint(-3, 300), "share": draw.choice([0.5, 2.0, 1e-7]),
                     "on": draw.random() < 0.5, "list": [text(draw)] * draw.randint(0, 2)}
    return {"id": f"c{draw.randint(0, 9)}", "type": "function",
            "function": {"name": "tide", "arguments": arguments}}


def chat(draw, tools):
    messages = []
    if draw.random() < 0.4:
        messages.append({"role": "system", "content": text(draw)})
    for _ in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": text(draw)})
        if tools and draw.random() < 0.5:
            messages.append({"role": "assistant", "content": None,
                             "tool_calls": [call(draw) for _ in range(draw.randint(1, 2))]})
            messages.append({"role": "tool", "content": text(draw), "tool_call_id": "c1"})
        answer = {"role": "assistant", "content": text(draw)}
        if draw.random() < 0.3:
            answer["weight"] = draw.choice([0, 1])
        if draw.random() < 0.3:
            answer["reasoning_content"] = text(draw)
        messages.append(answer)
    messages[-1].pop("weight", None)
    return messages


def record(draw, kind):
    if kind == "mixed":
        kind = draw.choice(["chat", "instruction", "completion", "text"])
    if kind in ("chat", "tools"):
        return {"messages": chat(draw, kind == "tools")}
    if kind == "sharegpt":
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        return {"conversations": [{"from": names[m["role"]], "value": m["content"]}
                                  for m in chat(draw, False)]}
    if kind == "instruction":
        return {"instruction": text(draw), "input": draw.choice([None, "", text(draw)]),
                "output": text(draw)}
    if kind == "completion":
        return {"prompt": text(draw), "completion": text(draw)}
    return {"text": text(draw)}


def variant(kind, t):
    """The type t with another layout of text and lists."""
    if pa.types.is_string(t):
        return {"large": pa.large_string(), "view": pa.string_view(),
                "dictionary": pa.dictionary(pa.int32(), pa.string())}.get(kind, t)
    if pa.types.is_list(t):
        inner = variant(kind, t.value_type)
        return {"large": pa.large_list, "view": pa.list_view}.get(kind, pa.list_)(inner)
    if pa.types.is_struct(t):
        return pa.struct([pa.field(f.name, variant(kind, f.type)) for f in t])
    return t


def write_arrow(table, path, stream=False):
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as w:
        w.write_table(table, max_chunksize=3)


def columns_of_messages(rows):
    """The rows with messages as an object of lists, as old versions of datasets store them."""
    done = []
    for row in rows:
        row = dict(row)
        if row.get("messages"):
            keys = sorted({k for m in row["messages"] for k in m})
            row["messages"] = {k: [m.get(k) for m in row["messages"]] for k in keys}
        done.append(row)
    return done


def write_table(folder, draw, kind):
    rows = [record(draw, kind) for _ in range(draw.randint(2, 9))]
    lines = "".join(json.dumps(r, ensure_ascii=draw.random() < 0.5) + "\n" for r in rows)
    (folder / "want.jsonl").write_text(lines)
    names = list(dict.fromkeys(k for r in rows for k in r))
    draw.shuffle(names)
    rows = [{k: r.get(k) for k in names} for r in rows]
    table = pa.Table.from_pylist(rows)
    write_arrow(table, folder / "file.arrow")
    write_arrow(table, folder / "stream.arrow", stream=True)
    for compression in ("none", "snappy", "zstd", "gzip", "lz4", "brotli"):
        pq.write_table(table, folder / f"{compression}.parquet", compression=compression,
                       row_group_size=draw.randint(1, 4), use_dictionary=draw.random() < 0.5,
                       data_page_version=draw.choice(["1.0", "2.0"]),
                       data_page_size=draw.choice([1, 1 << 20]),
                       use_compliant_nested_type=draw.random() < 0.7)
    for other in ("large", "view", "dictionary"):
        schema = pa.schema([pa.field(f.name, variant(other, f.type)) for f in table.schema])
        try:
            cast = pa.Table.from_pylist(rows, schema=schema)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as e:
            print(f"pyarrow has no {other} {kind}: {e}")
            continue
        write_arrow(cast, folder / f"{other}.arrow")
        try:
            pq.write_table(cast, folder / f"{other}.parquet")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as e:
            print(f"Parquet has no {other} {kind}: {e}")
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(folder / "saved"))
    data.to_parquet(str(folder / "datasets.parquet"))
    data.to_json(str(folder / "lines.json"))
    data.to_json(str(folder / "array.json"), lines=False)
    write_renamed(folder, data)
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(str(folder / "splits"))
    for name, change in (("columns", columns_of_messages), ("encoded", encoded)):
        changed = pa.Table.from_pylist(change(rows))
        write_arrow(changed, folder / f"{name}.arrow")
        pq.write_table(changed, folder / f"{name}.parquet")
    features = data.features.copy()
    if "messages" in features:
        features["messages"] = datasets.List(datasets.Json())
        typed = datasets.Dataset.from_list(rows, features=features)
        typed.to_parquet(str(folder / "json.parquet"))
        typed.save_to_disk(str(folder / "json"))


RENAMED = {"instruction": "question", "input": "context", "output": "answer", "messages": "dialog",
           "conversations": "turns", "prompt": "given", "completion": "wanted", "text": "body"}


def write_renamed(folder, data):
    """The table with columns of other names, which --columns maps back."""
    columns = {k: v for k, v in RENAMED.items() if k in data.column_names}
    data = data.rename_columns(columns)
    (folder / "renamed").mkdir()
    (folder / "renamed" / "columns").write_text(",".join(f"{k}={v}" for k, v in columns.items()))
    data.to_parquet(str(folder / "renamed" / "a.parquet"))
    data.to_json(str(folder / "renamed" / "a.jsonl"))
    data.to_json(str(folder / "renamed" / "b.json"), lines=False)
    data.save_to_disk(str(folder / "renamed" / "saved"))


def encoded(rows):
    """The rows with each message as JSON in a string."""
    return [{k: [json.dumps(m) for m in v] if k in ("messages", "conversations") and v else v
             for k, v in r.items()} for r in rows]


TEMPLATES = [
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
    "<|im_end|>{% endif %}\n{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %} {% generation %}{{ m.content.strip() }}"
    " {{ eos_token }}{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}",
]


def masks(draw, count):
    cases = []
    for name in ("llama3", "qwen2", "llama2", "metaspace", "gpt2"):
        folder = ROOT / "text" / "tokenizer" / "testdata" / name
        tok = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text()) if (
            folder / "tokenizer_config.json").exists() else {}
        eos = config.get("eos_token")
        eos = eos["content"] if isinstance(eos, dict) else eos
        for template in TEMPLATES:
            if "eos_token" in template and not eos:
                continue
            for _ in range(count):
                messages = [m for m in chat(draw, False)]
                for m in messages:
                    m.pop("weight", None)
                    m.pop("reasoning_content", None)
                    if m["role"] == "assistant":  # a last character of several tokens: see below
                        m["content"] += "."
                got = tok.apply_chat_template(
                    messages, chat_template=template, return_assistant_tokens_mask=True,
                    return_dict=True, **({"eos_token": eos} if eos else {}))
                cases.append({"tokenizer": str(folder), "template": template, "messages": messages,
                              "ids": got["input_ids"], "mask": got["assistant_masks"]})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="tables")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        kinds = ["chat", "tools", "sharegpt", "instruction", "completion", "text", "mixed"]
        for i in range(options.count):
            folder = work / "tables" / f"{i}-{kinds[i % len(kinds)]}"
            folder.mkdir(parents=True)
            write_table(folder, draw, kinds[i % len(kinds)])
        (work / "masks.json").write_text(json.dumps(masks(draw, 20)))
        command = ["go", "test", "./text/dataset", "-count=1", "-v", "-run", "Peers"]
        sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | {"CONQUER_DATA": str(work)})
                 .returncode)


if __name__ == "__main__":
    main()
