"""`compose.yaml` and the numbers of `docs/serving.md`: form, safety, and arithmetic.

No container is started here. The file is held against the Compose Specification's schema, its
sizes are computed again from the model's shape, and where a Docker client with Compose is
installed, `docker compose config` has to read it as these tests do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from qwenlong_graph.reading.budget import Budget, ReadingSettings, derive_budget

ROOT = Path(__file__).parent.parent
COMPOSE = (ROOT / "compose.yaml").read_text("utf-8")
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text("utf-8")

PROFILES = ["tgi", "vllm", "sglang", "llamacpp"]
GIB = 1024**3

# Qwen3-30B-A3B: experts, router, attention and embeddings, without the norms (0.4 million).
EXPERTS = 48 * 128 * 3 * 2048 * 768
EMBEDDINGS = 2 * 151_936 * 2048
PARAMETERS = EXPERTS + 48 * 128 * 2048 + 48 * (2 * 2048 * 4096 + 2 * 2048 * 512) + EMBEDDINGS
WEIGHTS_GIB = {
    "bf16": 2 * PARAMETERS / GIB,
    "fp8": (PARAMETERS + EMBEDDINGS) / GIB,
    "Q8_0": 8.5 / 8 * PARAMETERS / GIB,
    "4-bit": 18.6e9 / GIB,
}
CARDS_GIB = {"24": 23.6, "48": 44.3, "80": 79.1}
# llama.cpp's q8_0 stores 32 values in 34 bytes.
KV_KIB = {"bf16": 96, "q8_0": 48 * 34 / 32}


def interpolated(text: str, values: dict[str, str]) -> str:
    """A text in which each `${NAME:-default}` stands for its value, as Compose does it."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: values.get(m[1]) or m[2], text)


def example_values(*, commented: bool) -> dict[str, str]:
    """What `.env.example` sets; or what it shows in comments."""
    pattern = r"^#(\w+)=(.*)$" if commented else r"^(\w+)=(.*)$"
    return dict(re.findall(pattern, EXAMPLE, re.MULTILINE))


def services_with(**values: str) -> dict[str, Any]:
    services = yaml.safe_load(interpolated(COMPOSE, values))["services"]
    assert isinstance(services, dict)
    return services


SERVICES = services_with()


def words(profile: str, services: dict[str, Any] = SERVICES) -> list[str]:
    """A service's command as Compose splits it."""
    return shlex.split(services[profile]["command"])


def option(profile: str, name: str) -> str:
    command = words(profile)
    return command[command.index(name) + 1]


def window_of(profile: str) -> int:
    names = {"tgi": "--max-total-tokens", "vllm": "--max-model-len", "sglang": "--context-length"}
    return int(option(profile, names.get(profile, "-c")))


def budget_for(window: int) -> Budget:
    """The agent's own budget, with the sizes of frame and question that the docs name."""
    return derive_budget(ReadingSettings(), window=window, frame_tokens=1_000, question_tokens=100)


def number(text: str) -> int:
    return int(text.replace(",", ""))


# Form


@cache
def validator() -> Draft202012Validator:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(content: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(content)]


@pytest.mark.parametrize("text", [COMPOSE, interpolated(COMPOSE, {})], ids=["raw", "filled in"])
def test_the_file_obeys_the_compose_specification(text: str) -> None:
    assert faults(yaml.safe_load(text)) == []


def test_the_schema_sees_a_wrong_key_deep_inside() -> None:
    content = deepcopy(yaml.safe_load(COMPOSE))
    device = content["services"]["tgi"]["deploy"]["resources"]["reservations"]["devices"][0]
    device["gpus"] = device.pop("capabilities")
    assert faults(content)


def test_each_engine_is_one_profile() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items()} == {
        name: [name] for name in PROFILES
    }


def test_the_example_starts_tgi() -> None:
    assert example_values(commented=False)["COMPOSE_PROFILES"] == "tgi"


def test_the_example_shows_every_variable_with_its_default() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    assert re.findall(r"\$(?!\{\w+:-)", COMPOSE) == [], "a variable without a default"
    shown = example_values(commented=False) | example_values(commented=True)
    del shown["COMPOSE_PROFILES"]
    assert shown.pop("VLLM_ARGS") == "--quantization fp8_per_tensor"
    assert defaults.pop("VLLM_ARGS") == ""
    assert shown == defaults


@pytest.mark.parametrize("profile", PROFILES)
def test_images_are_named_by_version(profile: str) -> None:
    tag = SERVICES[profile]["image"].rpartition(":")[2]
    assert re.search(r"\d", tag), f"{tag!r} may be another image tomorrow"


# Safety


@pytest.mark.parametrize("profile", PROFILES)
def test_the_port_is_on_the_loopback_address_only(profile: str) -> None:
    service = SERVICES[profile]
    (published,) = service["ports"]
    address, host_port, container_port = published.split(":")
    assert (address, host_port) == ("127.0.0.1", "8080")
    assert "network_mode" not in service
    assert f"//127.0.0.1:{container_port}/health" in str(service["healthcheck"]["test"])
    if "--port" in words(profile):
        assert option(profile, "--port") == container_port
        assert option(profile, "--host") == "0.0.0.0"


@pytest.mark.parametrize("profile", PROFILES)
def test_models_are_mounted_read_only_and_never_created(profile: str) -> None:
    binds = [volume for volume in SERVICES[profile]["volumes"] if volume["type"] == "bind"]
    assert binds == [
        {
            "type": "bind",
            "source": "./models",
            "target": "/models",
            "read_only": True,
            "bind": {"create_host_path": False},
        }
    ]


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_fetched_or_reported_unless_told(profile: str) -> None:
    environment = SERVICES[profile]["environment"]
    assert environment["HF_HUB_OFFLINE"] == 1
    assert environment["DO_NOT_TRACK"] == environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    fetching = services_with(HF_HUB_OFFLINE="0")[profile]["environment"]
    assert fetching["HF_HUB_OFFLINE"] == 0


def test_engines_with_usage_reports_are_told_to_send_none() -> None:
    assert option("tgi", "--usage-stats") == "off"
    assert SERVICES["vllm"]["environment"]["VLLM_NO_USAGE_STATS"] == "1"


def test_no_secrets_and_no_privileges() -> None:
    for text in (COMPOSE, EXAMPLE):
        assert re.findall(r"(?i:secret|password|api[-_]?key|_token\b)|\bhf_\w{20}", text) == []
    for service in SERVICES.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.keys().isdisjoint({"privileged", "cap_add", "pid", "ipc"})


# Working


@pytest.mark.parametrize("profile", PROFILES)
def test_a_gpu_is_reserved(profile: str) -> None:
    (device,) = SERVICES[profile]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    # The specification allows one of the two.
    assert len({"count", "device_ids"} & device.keys()) == 1


@pytest.mark.parametrize(
    ("profile", "flag"), [("vllm", "--tensor-parallel-size"), ("sglang", "--tp-size")]
)
def test_as_many_cards_are_reserved_as_share_the_model(profile: str, flag: str) -> None:
    services = services_with(GPUS="2")
    (device,) = services[profile]["deploy"]["resources"]["reservations"]["devices"]
    command = words(profile, services)
    assert device["count"] == command[command.index(flag) + 1] == "2"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_server_may_take_its_time_to_load_and_comes_back_when_it_dies(profile: str) -> None:
    service = SERVICES[profile]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["healthcheck"]["start_period"] == "15m"
    assert service["restart"] == "unless-stopped"
    assert "shm_size" in service


@pytest.mark.parametrize("profile", PROFILES)
def test_thoughts_stay_in_the_text(profile: str) -> None:
    assert "--reasoning-parser" not in words(profile)
    if profile == "llamacpp":
        assert option(profile, "--reasoning-format") == "none"


def test_further_options_become_words_of_their_own() -> None:
    services = services_with(VLLM_ARGS="--quantization fp8_per_tensor")
    assert words("vllm", services)[-2:] == ["--quantization", "fp8_per_tensor"]
    assert words("vllm")[-1] == "1"


# Arithmetic


def test_the_full_sizes_of_the_paper_fit_the_default_window() -> None:
    for profile in ("tgi", "vllm", "sglang"):
        budget = budget_for(window_of(profile))
        assert (budget.chunk_tokens, budget.memory_tokens) == (32_000, 15_000)
        assert budget.output_tokens == 50_000


def test_tgi_has_room_for_prompt_and_output_in_slices() -> None:
    total = int(option("tgi", "--max-total-tokens"))
    budget = budget_for(total)
    prompt = budget.chunk_tokens + budget.memory_tokens + budget.plan_tokens + 1_000 + 100
    # Output may overshoot to a multiple of 1,024, and each slice but the last comes back as input.
    output = -(-budget.output_tokens // 1_024) * 1_024
    limit = int(option("tgi", "--max-input-tokens"))
    assert limit == total - 1_024
    assert prompt + output - 1_024 <= limit
    assert prompt + output <= total


def test_tgi_is_given_what_its_fallback_needs() -> None:
    assert option("tgi", "--cuda-graphs") == "0"
    assert option("tgi", "--dtype") == "bfloat16"
    assert {"--quantize", "--num-shard", "--kv-cache-dtype"}.isdisjoint(words("tgi"))


@dataclass(frozen=True, kw_only=True)
class Calculation:
    """One line of arithmetic as it is printed: sizes in GiB, a token's KV in KiB, and tokens."""

    profile: str
    kv_kib: int
    share: float
    card: float
    weights: float
    working: float
    room: float
    tokens: int
    window: int

    @classmethod
    def of(cls, printed: dict[str, str]) -> Calculation:
        return cls(
            profile=printed["profile"],
            kv_kib=int(printed["kv_kib"]),
            share=float(printed["share"]),
            card=float(printed["card"]),
            weights=float(printed["weights"]),
            working=float(printed["working"]),
            room=float(printed["room"]),
            tokens=number(printed["tokens"]),
            window=number(printed["window"]),
        )


ROOM = (
    r"(?P<share>[\d.]+) x (?P<card>[\d.]+) - (?P<weights>[\d.]+) - (?P<working>[\d.]+)"
    r" = (?P<room>[\d.]+)"
)


def in_compose() -> list[Calculation]:
    """The calculations in the comments above each service."""
    found = []
    for comment, profile in re.findall(r"((?:^  #.*\n)+)  (\w+):\n", COMPOSE, re.MULTILINE):
        for match in re.finditer(
            rf"KV (?P<kv_kib>\d+) KiB a token.*\n"
            rf" +# +{ROOM} GiB of KV = (?P<tokens>[\d,]+) tokens\n"
            rf" +# +One sequence: (?P<window>[\d,]+) tokens, (?P<gib>[\d.]+) GiB",
            comment,
        ):
            calculation = Calculation.of({**match.groupdict(), "profile": profile})
            assert match["gib"] == f"{calculation.window * calculation.kv_kib * 1024 / GIB:.1f}"
            found.append(calculation)
    return found


def in_docs() -> list[Calculation]:
    """The calculations in the table of profiles."""
    rows = re.finditer(
        rf"^\| `(?P<profile>\w+)` \| \d+ GB \| [\w-]+ \| (?P<kv_kib>\d+) KiB \| {ROOM} \| "
        rf"(?P<tokens>[\d,]+) \| (?P<window>[\d,]+) \|$",
        SERVING,
        re.MULTILINE,
    )
    return [Calculation.of(row.groupdict()) for row in rows]


def test_the_docs_show_the_calculations_of_the_compose_file() -> None:
    assert [line.profile for line in in_compose()] == [
        "tgi", "vllm", "vllm", "sglang", "sglang", "llamacpp",
    ]  # fmt: skip
    assert in_docs() == in_compose()


@pytest.mark.parametrize("line", in_compose(), ids=lambda line: f"{line.profile}-{line.card}")
def test_a_calculation_is_right_and_the_window_fits(line: Calculation) -> None:
    assert line.card in CARDS_GIB.values()
    assert line.weights in [round(size, 1) for size in WEIGHTS_GIB.values()]
    assert line.kv_kib in KV_KIB.values()
    room = line.share * line.card - line.weights - line.working
    assert f"{room:.1f}" == f"{line.room:.1f}"
    assert line.tokens == int(room * GIB / (line.kv_kib * 1024)) // 1_000 * 1_000
    assert line.window <= line.tokens


def test_the_calculations_are_those_of_the_flags() -> None:
    first = {line.profile: line for line in reversed(in_compose())}
    assert {profile: line.window for profile, line in first.items()} == {
        profile: window_of(profile) for profile in PROFILES
    }
    assert first["vllm"].share == float(option("vllm", "--gpu-memory-utilization"))
    assert first["sglang"].share == float(option("sglang", "--mem-fraction-static"))
    assert option("llamacpp", "-ctk") == option("llamacpp", "-ctv") == "q8_0"
    assert first["llamacpp"].kv_kib == KV_KIB["q8_0"]


def test_the_docs_table_of_what_fits_is_what_the_shape_gives() -> None:
    for name, weights in WEIGHTS_GIB.items():
        weights = round(weights, 1)
        cells = []
        for card, cards in ((23.6, 1), (44.3, 1), (79.1, 1), (79.1, 2)):
            room = cards * (0.92 * card - 2.0) - weights
            tokens = int(room * GIB / (96 * 1024)) // 1_000 * 1_000
            cells.append(str(tokens) if room > 0 else "no")
        (row,) = re.findall(rf"^{name} +([\d.]+) GiB +(.*)$", SERVING, re.MULTILINE)
        assert (float(row[0]), row[1].split()) == (weights, cells)


def test_the_docs_table_of_windows_is_the_agents_own_budget() -> None:
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", SERVING, re.MULTILINE
    )
    assert len(rows) == 4
    for row in rows:
        window, *sizes = map(number, row)
        budget = budget_for(window)
        assert sizes == [budget.chunk_tokens, budget.memory_tokens, budget.output_tokens]


def test_the_docs_one_pass_length_is_the_agents_own() -> None:
    (tokens, window) = re.findall(r"full`\): ([\d,]+) tokens at ([\d,]+)", SERVING)[0]
    assert number(tokens) == budget_for(number(window)).full_tokens


def test_the_docs_start_llama_server_as_the_compose_file_does() -> None:
    (shown,) = re.findall(r"^\$ llama-server ((?:.*\\\n)*.*)", SERVING, re.MULTILINE)
    command = words("llamacpp")
    start = command.index("-c")
    assert shlex.split(shown.replace("\\\n", ""))[2:] == command[start:]
    assert command[:start:2] == ["-m", "--host", "--port"]


# What a real client makes of it


def compose_client() -> list[str]:
    """The command of an installed Compose 2 or later; skips where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        asked = subprocess.run(
            [*command, "version", "--short"], capture_output=True, text=True, timeout=60
        )
        if asked.returncode == 0 and re.match(r"v?(?:[2-9]|\d\d)", asked.stdout.strip()):
            return command
    pytest.skip("needs a Docker client with Compose 2 (no engine)")


@pytest.mark.parametrize("profile", PROFILES)
def test_docker_compose_reads_the_file_as_these_tests_do(profile: str, tmp_path: Path) -> None:
    client = compose_client()
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    named = example_values(commented=False) | example_values(commented=True)
    environment = {name: value for name, value in os.environ.items() if name not in named}
    shown = subprocess.run(
        [*client, "--profile", profile, "config", "--format", "json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    services = json.loads(shown.stdout)["services"]
    assert list(services) == [profile]
    service = services[profile]
    assert service["command"] == words(profile)
    assert service["image"] == SERVICES[profile]["image"]
    (port,) = service["ports"]
    assert (port["host_ip"], port["published"]) == ("127.0.0.1", "8080")
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device.get("count") == (1 if "count" in device else None)
    assert service["healthcheck"]["test"] == SERVICES[profile]["healthcheck"]["test"]
    assert service["volumes"][0]["read_only"] is True
