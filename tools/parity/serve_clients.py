"""Checks `conquer serve` with OpenAI's official clients, Python's here and Go's in openai/, and its
log-probabilities and greedy texts with transformers'. The model gets a chat template with tools.

usage: serve_clients.py MODEL [--conquer BINARY]   (MODEL: a Hugging Face folder or a .gguf file)
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import openai
import pydantic
import torch
import transformers

from harness import ROOT, check, failures

KEY = "secret"
# ChatML with tools, whose calls are JSON within tags.
TEMPLATE = r"""{%- if tools %}<|im_start|>system
You may call these functions:
{% for t in tools %}{{ t.function | tojson }}
{% endfor %}Call one with <tool_call>, an object of name and arguments, </tool_call>.<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{%- for c in m.tool_calls or [] %}{{ '\n' if not loop.first }}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@contextlib.contextmanager
def serving(binary, model):
    """Starts a server and yields its address."""
    command = [binary, "serve", "--model_path", model, "--device", "cpu", "--port", "0",
               "--dtype", "float32", "--served_model_name", "m", "--max_length", "2048"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "CONQUER_API_KEY": KEY})
    try:
        for line in process.stderr:
            print(line, end="")
            if line.startswith("conquer serve: m at "):
                yield line.split()[-1]
                break
        else:
            sys.exit("the server did not start")
        process.terminate()
        check("the server stops with success", process.wait(60) == 0)
    finally:
        process.kill()


def metric(url, name):
    with urllib.request.urlopen(url + "/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    return math.nan


def refused(what, kind, says, call):
    try:
        call()
        check(what, False, "no error")
    except kind as error:
        check(what, says in str(error), str(error)[:120])


def endpoints(client, url):
    check("models", [m.id for m in client.models.list().data] == ["m"])
    check("model", client.models.retrieve("m").id == "m")
    ask = dict(model="m", messages=QUESTION, max_tokens=32, temperature=0)
    plain = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    text = plain.choices[0].message.content
    entries = plain.choices[0].logprobs.content
    check("chat", plain.choices[0].finish_reason == "length" and plain.usage.completion_tokens == 32
          and len(entries) == 32 and all(e.top_logprobs[0].logprob == e.logprob for e in entries),
          text)
    check("bytes of tokens", b"".join(bytes(e.bytes or []) for e in entries).decode() == text)

    pieces, usage = [], None
    for chunk in client.chat.completions.create(**ask, stream=True,
                                                stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        pieces += [c.delta.content for c in chunk.choices if c.delta.content]
    check("stream", "".join(pieces) == text and len(pieces) > 8 and usage.completion_tokens == 32)
    cut = text[:text.index(text[20:24])]
    with client.chat.completions.stream(**{**ask, "n": 2}, stop=[text[20:24]]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    check("stream helper", [c.message.content for c in final.choices] == [cut, cut]
          and kinds.count("content.done") == 2)
    several = client.chat.completions.create(**{**ask, "n": 3, "temperature": 1.5, "seed": 1})
    check("three choices", len({c.message.content for c in several.choices}) == 3)
    stopped = client.chat.completions.create(**ask, stop=[text[20:24]])
    check("stop", stopped.choices[0].message.content == cut
          and stopped.choices[0].finish_reason == "stop")
    banned = entries[0].top_logprobs[0].token
    ids = urllib.request.Request(url + "/tokenize", headers={"Authorization": f"Bearer {KEY}"},
                                 data=f'{{"prompt": "{banned}"}}'.encode())
    with urllib.request.urlopen(ids) as answer:
        banned_id = str(json.load(answer)["tokens"][0])
    biased = client.chat.completions.create(**ask, logit_bias={banned_id: -100})
    check("logit_bias", not biased.choices[0].message.content.startswith(banned))
    loop = client.completions.create(model="m", prompt="a a a a a a a a", max_tokens=40,
                                     temperature=0, frequency_penalty=2).choices[0].text
    check("frequency_penalty", len(set(loop.split())) > 3, loop[:60])

    class Person(pydantic.BaseModel):
        name: str
        age: int = pydantic.Field(ge=0, le=150)
        friends: list[str] = pydantic.Field(max_length=2)

    parsed = client.chat.completions.parse(
        model="m", messages=[{"role": "user", "content": "Describe a person."}], max_tokens=200,
        temperature=0, response_format=Person)
    check("a parsed answer", isinstance(parsed.choices[0].message.parsed, Person),
          parsed.choices[0].message.content)

    vectors = [d.embedding for d in client.embeddings.create(model="m", input=["a", "b"]).data]
    check("embeddings", all(abs(sum(x * x for x in v) - 1) < 1e-3 for v in vectors))

    refused("best_of", openai.BadRequestError, "best_of",
            lambda: client.completions.create(model="m", prompt="a", best_of=2))
    refused("another model", openai.NotFoundError, "does not exist",
            lambda: client.chat.completions.create(model="x", messages=QUESTION))
    refused("a wrong field", openai.BadRequestError, "temperature",
            lambda: client.chat.completions.create(**{**ask, "temperature": -1}))
    refused("a wrong field, streamed", openai.BadRequestError, "temperature",
            lambda: client.chat.completions.create(**{**ask, "temperature": -1}, stream=True))
    refused("a wrong key", openai.AuthenticationError, "key",
            lambda: openai.OpenAI(base_url=url + "/v1", api_key="x").models.list())


class Weather(pydantic.BaseModel):
    """The weather in a city."""
    city: str
    days: int = pydantic.Field(ge=1, le=9)


def tools(client):
    """Calls of tools: forced, chosen freely, streamed, and the turn after them."""
    messages = [{"role": "user", "content": "What will the weather be in Oslo tomorrow?"}]
    tool = openai.pydantic_function_tool(Weather)
    ask = dict(model="m", messages=messages, tools=[tool], max_tokens=200, temperature=0)
    named = {"type": "function", "function": {"name": "Weather"}}
    answer = client.chat.completions.parse(**ask, tool_choice=named).choices[0]
    call = answer.message.tool_calls[0]
    check("a forced call", answer.finish_reason == "tool_calls" and answer.message.content is None
          and isinstance(call.function.parsed_arguments, Weather), call.function.arguments)
    with client.chat.completions.stream(**ask, tool_choice=named) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    same = final.message.tool_calls[0]
    check("a streamed call", same.function.arguments == call.function.arguments
          and len(same.id) == 9 and final.finish_reason == "tool_calls"
          and kinds.count("tool_calls.function.arguments.done") == 1
          and kinds.count("tool_calls.function.arguments.delta") > 3)
    free = client.chat.completions.create(**ask).choices[0]
    check("a call of the model's choice", bool(free.message.tool_calls) !=
          bool(free.message.content), free.message.to_json()[:200])
    messages += [answer.message.model_dump(exclude_none=True, exclude={"parsed"}),
                 {"role": "tool", "tool_call_id": call.id, "content": "rain, 4 degrees"}]
    after = client.chat.completions.create(**{**ask, "tool_choice": "none"}).choices[0]
    check("the turn after a call", bool(after.message.content), after.message.content[:80])
    refused("a tool that is not there", openai.BadRequestError, "does not have",
            lambda: client.chat.completions.create(**ask, tool_choice={
                "type": "function", "function": {"name": "other"}}))


def cancellation(client, url):
    """A client that breaks off frees its place, whatever it waits for."""
    stream = client.chat.completions.create(model="m", messages=QUESTION, max_tokens=1500,
                                            stream=True, extra_body={"ignore_eos": True})
    for _, _ in zip(range(4), stream):
        pass
    stream.close()
    try:
        client.with_options(timeout=0.5, max_retries=0).chat.completions.create(
            model="m", messages=QUESTION, max_tokens=1500, extra_body={"ignore_eos": True})
        check("a timeout of the client", False)
    except openai.APITimeoutError:
        pass
    for _ in range(100):
        if metric(url, "conquer_running") == 0:
            break
        time.sleep(0.1)
    check("nothing runs after cancellation", metric(url, "conquer_running") == 0)


async def company(url):
    """Answers of many requests at once are those of each alone."""
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY)
    words = "sea sky fire stone wind rain snow tree bird road lamp door ship moon salt iron".split()

    async def ask(word):
        answer = await client.completions.create(
            model="m", prompt=f"The {word} " * (1 + len(word) * 7) + "is", max_tokens=24,
            temperature=0, logprobs=2, extra_body={"ignore_eos": True})
        return answer.choices[0].text, answer.choices[0].logprobs.token_logprobs

    alone = [await ask(word) for word in words]
    together = await asyncio.gather(*map(ask, words))
    check("16 requests at once: the same bits as alone", alone == together)


def load(path):
    """The model and tokenizer in transformers."""
    path = pathlib.Path(path)
    where = (str(path), {}) if path.is_dir() else (str(path.parent), {"gguf_file": path.name})
    model = transformers.AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32,
                                                              **where[1])
    return model.eval(), transformers.AutoTokenizer.from_pretrained(where[0], **where[1])


@torch.no_grad()
def numbers(client, path):
    """Log-probabilities of prompts and greedy tokens against transformers."""
    model, tokenizer = load(path)
    texts = ["The sea is", "def add(a, b):\n    return", "Once upon a time, " * 60]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    answer = client.completions.create(model="m", prompt=prompts, max_tokens=16, temperature=0,
                                       echo=True, logprobs=1, extra_body={"ignore_eos": True})
    for choice, ids in zip(answer.choices, prompts):
        greedy = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16,
                                min_new_tokens=16)[0].tolist()
        want = model(torch.tensor([greedy])).logits.log_softmax(-1)[0]
        want = [want[i, id].item() for i, id in enumerate(greedy[1:])]
        got = choice.logprobs.token_logprobs
        worst = max(abs(a - b) for a, b in zip(got[1:], want))
        check(f"log-probabilities of {len(ids)} + 16 tokens", got[0] is None
              and len(got) == len(greedy) and worst < 1e-3, f"largest difference {worst:.1e}")
        check("greedy text", choice.text == tokenizer.decode(greedy))


def with_tools(binary, model, folder):
    """A copy of the model whose chat template shows tools."""
    subprocess.run([binary, "export", "--model_path", model, "--output_path", folder, "--dtype",
                    "float32"], check=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--conquer", default=str(ROOT / "build" / "bin" / "conquer"))
    options = parser.parse_args()
    go = ROOT / "tools" / "parity" / "openai"
    with tempfile.TemporaryDirectory() as work:
        model = with_tools(options.conquer, options.model, pathlib.Path(work) / "model")
        with serving(options.conquer, model) as url:
            client = openai.OpenAI(base_url=url + "/v1", api_key=KEY)
            endpoints(client, url)
            tools(client)
            cancellation(client, url)
            asyncio.run(company(url))
            numbers(client, options.model)
            done = subprocess.run(["go", "run", ".", url, "m", KEY], cwd=go)
            check("the Go client's checks", done.returncode == 0)
    sys.exit(f"{len(failures)} comparisons failed" if failures else None)


if __name__ == "__main__":
    main()
