"""Models in this process, with a tiny random checkpoint made here."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading

import pytest
from langchain_core.messages import HumanMessage
from langchain_huggingface import ChatHuggingFace

from qwenlong_graph import connect
from qwenlong_graph.errors import ContextOverflowError, MissingExtraError, SettingsError
from qwenlong_graph.models.calls import aask, ask
from qwenlong_graph.testing.tgi import small_tokenizer

REASON = "needs the extra transformers (torch and accelerate), which is not installed"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("accelerate", reason=REASON)

pytestmark = [pytest.mark.alone, pytest.mark.contract]

HELLO = [{"role": "user", "content": "Hello."}]
WINDOW = 512
THOUGHT, ANSWER = "<think>so memory</think>", "the answer was new"


def checkpoint(folder, *, tokenizer=None, said=None):
    """A random Qwen3 of 0.1 MB; with `said` it says these token ids, and nothing else."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer or small_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=WINDOW,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    if said is not None:
        teach(model, said)
    model.save_pretrained(folder)
    return str(folder)


def teach(model, said):
    """Makes each token of `said`, all different, follow the one before; the first follows "\\n"."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(said):
            seen = model.model.embed_tokens.weight[before].float()
            model.lm_head.weight[after] += (200 * seen / seen.norm()).to(torch.bfloat16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return connect(f"transformers:{checkpoint(tmp_path_factory.mktemp('models') / 'tiny')}")


def saying(text, folder):
    """A model that says `text`, whatever it is asked, and ends."""
    tokenizer = small_tokenizer()
    # As in the templates of thinking models, which write the thoughts of earlier turns.
    tokenizer.chat_template += "{# <think> #}"
    ids = [tokenizer.encode("\n")[-1], *tokenizer.encode(text), tokenizer.eos_token_id]
    assert len(set(ids)) == len(ids)
    return connect(f"transformers:{checkpoint(folder, tokenizer=tokenizer, said=ids)}")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return saying(THOUGHT + ANSWER, tmp_path_factory.mktemp("models") / "thinker")


def test_it_describes_itself(model):
    assert (model.engine, model.window, model.concurrency) == ("transformers", WINDOW, 1)
    assert model.model_name == "tiny"
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>"} <= set(model.special_tokens)
    assert model.template_tokens == 8
    assert isinstance(model.chat, ChatHuggingFace)
    # "auto" is the type that the checkpoint was stored in.
    assert model.chat.llm.pipeline.model.dtype == torch.bfloat16


def test_prompts_are_counted_as_the_model_reads_them(model):
    text = "x\nThe lamp of 1870. 灯台 🗼"
    prompts = [ask(model, [{"role": "user", "content": t}], max_tokens=1) for t in ("x", text)]
    added = model.count_tokens(text) - model.count_tokens("x")
    assert prompts[1].input_tokens - prompts[0].input_tokens == added
    assert prompts[0].input_tokens == model.template_tokens + model.count_tokens("x")
    assert model.count_tokens("<|im_end|>") > 1


def test_a_seed_repeats_a_reply_and_leaves_other_random_numbers_alone(model):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (
        ask(model, HELLO, max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first.text == again.text != other.text
    assert torch.rand(1) == expected
    assert (first.output_tokens, first.is_truncated) == (12, True)


def test_temperature_0_decodes_greedily(model):
    replies = {
        ask(model, HELLO, max_tokens=12, temperature=0.0, seed=seed).text for seed in range(3)
    }
    assert len(replies) == 1


def test_thoughts_are_split_off_and_counted(thinker):
    message = thinker.chat.invoke("Hello.", max_tokens=50, temperature=0)
    assert message.text == ANSWER
    assert message.content_blocks[0] == {"type": "reasoning", "reasoning": "so memory"}
    assert message.response_metadata["finish_reason"] == "eos_token"
    thought, answer = map(len, map(small_tokenizer().encode, (THOUGHT, ANSWER)))
    assert message.usage_metadata["output_token_details"] == {"reasoning": thought}
    assert message.usage_metadata["output_tokens"] == thought + answer + 1


def test_a_reply_cut_inside_its_thoughts_says_so(thinker):
    reply = ask(thinker, HELLO, max_tokens=3, temperature=0)
    assert (reply.text, reply.is_truncated) == ("", True)


def test_stop_texts_end_the_answer_and_are_left_out(thinker):
    assert ask(thinker, HELLO, max_tokens=50, temperature=0, stop=[" was"]).text == "the answer"
    # Thoughts are not stopped.
    reply = ask(thinker, HELLO, max_tokens=50, temperature=0, stop=["memory"])
    assert reply.text == ANSWER


def test_a_stream_gives_the_same_in_pieces(thinker):
    chunks = list(thinker.chat.stream("Hello.", max_tokens=50, temperature=0))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len(chunks) > 5
    assert whole.text == ANSWER
    assert whole.content_blocks[0]["reasoning"] == "so memory"
    assert whole.usage_metadata["input_tokens"] == 14


def test_a_character_of_several_tokens_comes_whole(tmp_path):
    chunks = list(saying("the é🗼 of", tmp_path).chat.stream("Hello.", temperature=0))
    assert [chunk.text for chunk in chunks if chunk.text] == ["the", " ", "é", "🗼", " of"]


async def test_async_calls_say_the_same(model, thinker):
    sync = ask(model, HELLO, max_tokens=12, temperature=1.0, seed=3)
    assert await aask(model, HELLO, max_tokens=12, temperature=1.0, seed=3) == sync
    texts = [chunk.text async for chunk in thinker.chat.astream("Hello.", temperature=0)]
    assert "".join(texts) == ANSWER


@contextlib.contextmanager
def held_at(model, step):
    """Holds the model at that many steps until the event is set; counts its steps."""
    steps, may_go_on = [], threading.Event()

    def hold(*_):
        steps.append(len(steps))
        if len(steps) == step:
            may_go_on.wait(60)

    hook = model.chat.llm.pipeline.model.register_forward_hook(hold)
    try:
        yield steps, may_go_on
    finally:
        may_go_on.set()
        hook.remove()


def wait_for_turn(model):
    turn = model.chat._place.turn
    assert turn.acquire(timeout=60)
    turn.release()


def test_leaving_a_stream_ends_the_generation_at_the_next_token(model):
    with held_at(model, 50) as (steps, may_go_on):
        stream = model.chat.stream("Hello.", temperature=1.0, seed=5)
        next(stream)
        stream.close()
        may_go_on.set()
        wait_for_turn(model)
        assert len(steps) <= 50


async def test_cancelling_a_call_ends_it_whether_it_runs_or_waits(model):
    with held_at(model, 50) as (steps, may_go_on):
        calls = [
            asyncio.create_task(model.chat.ainvoke("Hello.", temperature=1.0, seed=seed))
            for seed in (5, 6)
        ]
        while len(steps) < 50:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        may_go_on.set()
        await asyncio.to_thread(wait_for_turn, model)
        assert len(steps) == 50
    assert (await aask(model, HELLO, max_tokens=2, temperature=0.0)).output_tokens == 2


def test_calls_from_threads_take_turns(model):
    from concurrent.futures import ThreadPoolExecutor

    def call(seed):
        return ask(model, HELLO, max_tokens=8, temperature=1.0, seed=seed).text

    alone = [call(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(call, range(4))) == alone


def test_a_prompt_longer_than_the_window_is_refused_with_both_numbers(model):
    with pytest.raises(ContextOverflowError, match=r"prompt has 1,\d+ tokens and the window 512"):
        ask(model, [{"role": "user", "content": "z " * 600}], max_tokens=4)


def test_a_reply_ends_with_the_window(model):
    # Greedily, this model repeats itself without end.
    message = model.chat.invoke("Hello.", max_tokens=WINDOW + 50, temperature=0)
    assert message.usage_metadata["total_tokens"] == WINDOW
    assert message.response_metadata["finish_reason"] == "length"


def test_what_it_cannot_do_is_refused(model):
    with pytest.raises(SettingsError, match="knows no setting response_format"):
        model.chat.invoke([HumanMessage("x")], response_format={"type": "json"})
    with pytest.raises(NotImplementedError, match="takes no tools"):
        model.chat.bind_tools([])


def test_a_smaller_window_may_be_asked_for_and_a_larger_one_not(tmp_path):
    folder = checkpoint(tmp_path)
    assert connect(f"transformers:{folder}", window=100).window == 100
    with pytest.raises(SettingsError, match=r"513 .*trained on 512"):
        connect(f"transformers:{folder}", window=513)


def test_a_base_model_is_refused_before_it_is_loaded(tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="no chat template: a base model"):
        connect(f"transformers:{tmp_path}")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_model_is_named(tmp_path, damage):
    folder = checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SettingsError, match=f"Loading the model {folder} failed"):
        connect(f"transformers:{folder}")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"qwenlong-graph\[transformers\]"):
        connect(f"transformers:{tmp_path}")


def test_options_of_servers_are_refused():
    with pytest.raises(SettingsError, match="leave them out"):
        connect("transformers:x", api_key="k")


@pytest.mark.end_to_end
def test_a_gguf_file_is_read_and_answers():
    pytest.importorskip("gguf", reason=REASON)
    from qwenlong_graph.models.fetching import embedded_model_path

    model = connect(f"transformers:{embedded_model_path()}")
    question = "What is the capital of France?"
    reply = ask(model, [{"role": "user", "content": question}], max_tokens=12, temperature=0.0)
    assert "Paris" in reply.text
    assert not reply.is_truncated
    assert reply.input_tokens == model.template_tokens + model.count_tokens(question)
    assert model.window == 8192
    assert {"<|im_start|>", "<|im_end|>"} <= set(model.special_tokens)
