"""What is counted: once, whatever lies within what; what is not known stays unknown."""

import json
import subprocess
import sys
import threading
import time
import types

import pytest

from limbeck import energy, ledger, store
from limbeck.engines.budget import Budget
from limbeck.folder import Machine, StageFolder

# -- accounts -----------------------------------------------------------------------------------


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_lies_within_an_account_is_counted_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    begun, cpu = time.monotonic(), ledger.cpu_seconds()
    with ledger.account(path, "outer", ledger.Rent(2, 36.0)):
        busy(0.05)
        with ledger.account(path, "middle", ledger.Rent(2, 36.0)):
            busy(0.1)
            with ledger.account(path, "inner", ledger.Rent(2, 36.0)):
                busy(0.15)
        with ledger.account(path, "second", ledger.Rent(2, 36.0)):
            busy(0.05)
    wall, cpu = time.monotonic() - begun, ledger.cpu_seconds() - cpu
    rows = store.read_jsonl(path)
    assert [row["work"] for row in rows] == ["inner", "middle", "second", "outer"]
    total = ledger.total(path)
    # 0.35 s are spent in all, and counted twice they would be at least 0.5; four rows are rounded
    # to milliseconds, the system counts in hundredths, and opening an account takes time of its own
    assert 0.35 - 0.002 <= total["wall_seconds"] <= wall + 0.002
    assert 0.35 - 0.05 <= total["cpu_seconds"] <= cpu + 0.05
    assert total["device_seconds"] == pytest.approx(2 * total["wall_seconds"])
    assert total["money"] == pytest.approx(36.0 * total["wall_seconds"] / 3600)


def test_an_account_that_fails_keeps_its_row_and_closes(tmp_path):
    path = tmp_path / "ledger.jsonl"

    def fail():
        with ledger.account(path, "outer"), ledger.account(path, "inner") as row:
            row["tokens_out"] += 3
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with ledger.account(path, "next"):
        pass
    assert [row["tokens_out"] for row in store.read_jsonl(path)] == [3, 0, 0]


def test_the_total_is_the_sum_of_the_rows(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for number in (1, 2, 3):
        with ledger.account(path, "part", ledger.Rent(1, 1.0)) as row:
            row |= {"tokens_in": number, "tokens_out": 10 * number, "flops": 100.0 * number}
    rows, total = store.read_jsonl(path), ledger.total(path)
    for key in ("wall_seconds", "cpu_seconds", "tokens_in", "tokens_out", "flops", "money"):
        assert total[key] == sum(row[key] for row in rows)
    assert total["peak_memory_mib"] == max(row["peak_memory_mib"] for row in rows) > 0
    assert total["peak_device_memory_mib"] == 0
    assert total["joules"] is None or "packages" in total["joules_of"]


def test_old_ledgers_are_read_and_what_they_do_not_tell_is_unknown(tmp_path):
    path = tmp_path / "ledger.jsonl"
    old = {"work": "train", "tokens_in": 5, "tokens_out": 0, "flops": 7.0, "wall_seconds": 1.0}
    store.append_json(path, old | {"cpu_seconds": 1.0, "peak_memory_mib": 30.0})
    told = ledger.total(path)
    assert told["flops"] == 7.0 and told["peak_memory_mib"] == 30.0
    assert (told["device_seconds"], told["joules"], told["money"]) == (None, None, None)
    with ledger.account(path, "train", ledger.Rent(1, 3600.0)):
        busy(0.01)
    told = ledger.total(path)
    assert told["device_seconds"] is None  # half of it would be no sum
    assert told["money"] > 0  # what has a price


def test_nothing_spent_is_nothing():
    assert ledger.summed([])["device_seconds"] == 0
    assert ledger.summed([])["money"] is None


# -- prices -------------------------------------------------------------------------------------


def test_the_rent_is_that_of_all_devices():
    machine = Machine(device="cuda", devices=4, price_per_hour=2.0)
    assert machine.rent() == ledger.Rent(4, 8.0)
    assert Machine(device="cpu", price_per_hour=2.0).rent() == ledger.Rent(0, 2.0)
    assert Machine(device="cuda").rent() == ledger.Rent(1, None)


@pytest.mark.parametrize("rent", [None, 3600.0])
def test_what_a_server_is_paid_comes_on_top_of_the_rent(tmp_path, rent):
    from limbeck.engines.sampling import bill

    engine = types.SimpleNamespace(costs_money=True, budget=Budget({"input": 1.0, "output": 10.0}))
    out = StageFolder(tmp_path, "sample", machine=Machine(price_per_hour=rent))
    with out.account("part") as row:
        row |= bill(engine, 2_000_000, 100_000)
    with out.account("verdicts part"):
        pass
    rented = sum(row["wall_seconds"] for row in store.read_jsonl(tmp_path / "ledger.jsonl"))
    total = ledger.total(tmp_path / "ledger.jsonl")
    assert total["money"] == pytest.approx(3.0 + (rented if rent else 0.0))


def test_a_server_whose_prices_nobody_told_leaves_the_sum_unknown(tmp_path):
    from limbeck.engines.sampling import bill

    out = StageFolder(tmp_path, "sample", machine=Machine(price_per_hour=1.0))
    with out.account("part") as row:
        row |= bill(types.SimpleNamespace(costs_money=True, budget=Budget()), 100, 100)
    with out.account("verdicts part"):
        pass
    assert ledger.total(tmp_path / "ledger.jsonl")["money"] is None
    free = types.SimpleNamespace(costs_money=False)
    assert bill(free, 100, 100) == {}


def test_a_budget_and_its_ledger_agree():
    budget = Budget({"input": 0.55, "output": 2.19})
    parts = [(120, 4000), (60, 0), (1, 99_999)]
    for part in parts:
        budget.count(part)
    assert budget.cost == pytest.approx(sum(budget.price_of(*part) for part in parts))
    assert Budget().cost == 0.0 and Budget().price_of(1, 1) is None


# -- memory -------------------------------------------------------------------------------------


def test_the_ledger_imports_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from limbeck import ledger\n"
        f"with ledger.account(Path({str(tmp_path / 'ledger.jsonl')!r}), 'work'): pass\n"
        "assert 'torch' not in sys.modules and 'pynvml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_on_a_gpu_is_asked_of_a_torch_that_uses_one(tmp_path, monkeypatch):
    def peak(gpu):
        return (gpu + 1) * 512 * 2**20

    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        max_memory_allocated=peak,
        reset_peak_memory_stats=lambda gpu: None,
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    with ledger.account(tmp_path / "ledger.jsonl", "work"):
        pass
    assert ledger.total(tmp_path / "ledger.jsonl")["peak_device_memory_mib"] == 1024.0


# -- joules -------------------------------------------------------------------------------------


@pytest.fixture
def powercap(tmp_path):
    """Two packages; a part of one of them, which is no package, and the whole board."""
    domains = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for domain, name in domains.items():
        place = tmp_path / domain
        place.mkdir()
        (place / "name").write_text(f"{name}\n")
        (place / "energy_uj").write_text("5000000\n")
        (place / "max_energy_range_uj").write_text("9000000\n")
    return tmp_path


def set_joules(powercap, package, joules):
    (powercap / f"intel-rapl:{package}" / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_packages_are_counted_once_each_and_over_their_turn(powercap):
    meter = energy.Meter(energy.packages(powercap))
    assert len(meter.counters) == 2 and meter.of == ["packages"]
    assert meter.joules() == 0
    set_joules(powercap, 0, 8)
    set_joules(powercap, 1, 5.5)
    assert meter.joules() == pytest.approx(3.5)
    set_joules(powercap, 0, 1)  # 9 is where it begins anew
    assert meter.joules() == pytest.approx(3.5 + 2)


def test_a_counter_that_goes_away_makes_the_sum_unknown(powercap):
    meter = energy.Meter(energy.packages(powercap))
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None
    set_joules(powercap, 1, 7)
    assert meter.joules() is None  # some were missed


def test_packages_that_only_root_may_read_are_none(powercap):
    for package in (0, 1):
        (powercap / f"intel-rapl:{package}" / "energy_uj").unlink()
    assert energy.packages(powercap) == []
    assert energy.Meter([]).joules() is None
    assert energy.packages(powercap / "nowhere") == []


def nvml(joules):
    class NVMLError(Exception):
        pass

    asked = []

    def handle(name):
        if str(name) not in joules:
            raise NVMLError("no such device")
        asked.append(name)
        return str(name)

    module = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: joules[gpu] * 1000,
    )
    return module, asked


@pytest.mark.parametrize(
    ("visible", "wanted"), [(None, [0, 1]), ("3, GPU-5f", [3, "GPU-5f"]), ("1", [1])]
)
def test_gpus_are_those_that_may_be_seen(monkeypatch, visible, wanted):
    joules = {"0": 10.0, "1": 20.0, "3": 30.0, "GPU-5f": 40.0}
    module, asked = nvml(joules)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = energy.Meter(energy.nvidia(2))
    assert asked == wanted and meter.of == ["gpus"]
    for gpu in wanted:
        joules[str(gpu)] += 7.5
    assert meter.joules() == pytest.approx(7.5 * len(wanted))


def test_a_gpu_that_tells_nothing_leaves_energy_unknown(monkeypatch, powercap):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # is not installed
    monkeypatch.setattr(energy, "POWERCAP", powercap)
    energy.meter.cache_clear()
    try:
        assert energy.nvidia(1) == []
        assert energy.meter(1).joules() is None
    finally:
        energy.meter.cache_clear()


def test_an_account_tells_joules_and_whose(tmp_path, monkeypatch):
    reading = iter(range(100))
    meter = energy.Meter([energy.Counter("packages", lambda: float(next(reading)))])
    monkeypatch.setattr(energy, "meter", lambda num_gpus: meter)
    path = tmp_path / "ledger.jsonl"
    with ledger.account(path, "outer"), ledger.account(path, "inner"):
        pass
    inner, outer = store.read_jsonl(path)
    assert (inner["joules"], outer["joules"]) == (1.0, 2.0)  # a joule a reading, counted once
    assert inner["joules_of"] == "packages"
    assert ledger.total(path)["joules"] == 3.0


def test_readers_at_once_count_each_joule_once():
    lock, told = threading.Lock(), [0]

    def read():
        with lock:
            told[0] += 1
            return float(told[0])

    meter = energy.Meter([energy.Counter("packages", read)])
    threads = [
        threading.Thread(target=lambda: [meter.joules() for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.joules() == told[0] - 1


# -- FLOPs --------------------------------------------------------------------------------------

SIZES = {
    "tied": {"hidden_size": 64, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "untied": {"hidden_size": 64, "num_hidden_layers": 3, "tie_word_embeddings": False},
    "grouped": {"hidden_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 2},
}


@pytest.fixture(params=["tied", "untied", "grouped", "qwen2"])
def decoder(request):
    transformers = pytest.importorskip("transformers")
    kind = "Qwen2Config" if request.param == "qwen2" else "LlamaConfig"
    sizes = SIZES.get(request.param, SIZES["tied"])
    config = getattr(transformers, kind)(
        **{"tie_word_embeddings": True, "num_key_value_heads": 4, **sizes},
        vocab_size=640,
        intermediate_size=192,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    config._attn_implementation = "eager"  # of which torch's counter sees every product
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("length", [16, 100, 512])
def test_flops_are_what_torch_counts_but_for_attention(decoder, length):
    """The bounds that `forward_flops` states."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from limbeck import models

    ids = torch.randint(0, 640, (1, length))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        decoder(ids)
    with FlopCounterMode(display=False) as step:
        decoder(ids, labels=ids).loss.backward()
    config = decoder.config
    # Eager attention computes the whole square, of which a causal kernel needs half.
    attention = 4 * config.num_hidden_layers * config.hidden_size * length**2
    table = 0 if config.tie_word_embeddings else 640 * config.hidden_size
    size = models.num_parameters(decoder)
    ours = ledger.forward_flops(size - table, length)
    assert forward.get_total_flops() == pytest.approx(ours + attention, rel=0.005)
    assert step.get_total_flops() == pytest.approx(3 * (ours + attention), rel=0.005)
    assert ledger.training_flops(size, length) == 3 * ledger.forward_flops(size, length)
    whole = models.flops_per_token(decoder, length) * length
    assert forward.get_total_flops() == pytest.approx(whole, rel=0.001)


def test_the_ledger_is_json(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with ledger.account(path, "work", ledger.Rent(1, 2.0)):
        pass
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["work"] == "work"
