"""A live Transformers model, edited, wrapped, cached or half precise, recorded in a `with` block and left as it was."""

import copy
import inspect
from importlib.util import find_spec

import numpy as np
import pytest
import tiny
import tiny3n
import tiny_drafter
import tiny_embedding
from closeness import assert_same_run, relative
from test_lint import OF_A_KIND

import numgemma
from numgemma.debug.blame.doctor import doctor
from numgemma.debug.compare.diff import diff
from numgemma.debug.compare.precheck import precheck
from numgemma.debug.noise.floor import cache_path
from numgemma.dump import Dump, read_dump
from numgemma.errors import InputError
from numgemma.prompt.media import read_media

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from numgemma.debug.capture import hooks  # noqa: E402
from numgemma.debug.capture.held import held  # noqa: E402

IDS = [2, 5, 100, 7, 33, 150, 8, 21, 60]  # past the window


def live(folder, dtype="float32", attention=None):
    """As a user loads it: with the attention that Transformers chooses."""
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()


def run(hf, ids=IDS, **more):
    with torch.no_grad():
        return hf(torch.tensor([list(ids)]), **more)


def hooks_of(hf):
    return sum(len(vars(m)[kind]) for m in hf.modules() for kind in vars(m) if kind.endswith("hooks") and vars(m)[kind])


def changed_methods(hf):
    """Functions that stand on an instance, over those of its class."""
    return [
        (type(m).__name__, name)
        for m in hf.modules()
        for name, x in vars(m).items()
        if callable(x) and "." in getattr(x, "__qualname__", "")
    ]


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_a_live_model_has_the_points_of_ours(folders, models, variant):
    with numgemma.capture(live(folders[variant], attention="eager"), IDS, ["*"]) as dump:
        pass
    assert_same_run(dump, models[variant].record(IDS, ["*"]))
    assert dump.meta["engine"]["attention"] == "eager"
    assert dump.meta["cache"] == "none"


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_with_the_fused_attention_all_but_its_maps_are_recorded(folders, models, variant):
    hf = live(folders[variant])
    with numgemma.capture(hf, IDS, ["*"]) as dump:
        run(hf)
    ours = models[variant].record(IDS, ["*"])
    assert set(ours) - set(dump) == {name for name in ours if name.endswith(("self_attn.scores", "self_attn.probs"))}
    assert diff(ours, dump, ["*", "!*.scores", "!*attn.probs"]).verdict == "same"


def test_gemma_3n_runs_live_with_fused_attention_too(tmp_path):
    folder = tiny3n.write(tmp_path / "m", tiny3n.TEXT)
    model = numgemma.load(folder)
    ids = tiny3n.prompt(12).tolist()
    hf = live(folder)
    with numgemma.capture(hf, ids) as dump:
        run(hf, ids)
    assert diff(model.record(ids), dump).verdict == "same"
    with numgemma.capture(hf, ids) as dump:
        through_the_cache(hf, ids, 2)
    assert diff(model.record(ids), dump).verdict == "same"


def test_a_model_that_makes_a_vector_runs_live_too(tmp_path):
    folder = tiny_embedding.write(tmp_path / "m", tiny_embedding.WHOLE)
    model, hf, ids = numgemma.load(folder), live(folder), tiny_embedding.prompt(7)
    with numgemma.capture(hf, ids) as dump:
        pass
    ours = model.record(ids)
    assert {"pooled", "vector"} <= set(dump)
    assert diff(ours, dump).verdict == "same"


def test_a_model_that_runs_on_arrays_beside_the_ids_is_refused_in_a_sentence(tmp_path):
    folder = tiny_drafter.write(tmp_path / "d", "k_eq_v")
    with pytest.raises(InputError, match="use `numgemma capture --inputs`"), numgemma.capture(live(folder), IDS):
        pass


def through_the_cache(hf, ids, prefill):
    name = "cache" if "cache" in inspect.signature(hf.base_model.forward).parameters else "past_key_values"
    cache = {name: transformers.DynamicCache(config=hf.config)}
    for part in (ids[:prefill], *([i] for i in ids[prefill:])):
        run(hf, part, **cache, use_cache=True)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_a_run_through_the_cache_is_one_dump(folders, models, variant):
    hf = live(folders[variant])
    with numgemma.capture(hf, IDS) as dump:
        through_the_cache(hf, IDS, 4)
    assert dump.meta["cache"] == "after 4 tokens"
    assert diff(models[variant].record(IDS), dump).verdict == "same"


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_of_generate_the_tokens_are_recorded_that_it_computes(folders, models, variant):
    hf = live(folders[variant])
    with numgemma.capture(hf, IDS) as dump, torch.no_grad():
        hf.generate(torch.tensor([IDS]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert dump["logits"].shape == (1, 199)
    assert dump.meta["parts"]["logits"]["at"] == [[len(IDS) - 1], None]
    assert diff(models[variant].record(IDS), dump).verdict == "same"


def test_a_patched_activation_is_named_by_doctor(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path))
    model, ids = numgemma.load("tiny"), [2, 105, 9, 300, 41, 77, 512, 8]
    hf = live(model.checkpoint.folder)
    for layer in hf.model.layers:
        layer.mlp.act_fn = torch.nn.SiLU()
    with numgemma.capture(hf, ids) as dump:
        run(hf, ids)
    found = doctor(model, dump)
    assert found.kind == "engine"
    assert found.cause.startswith("T15-silu")
    dump.save(tmp_path / "theirs.safetensors")
    assert diff(dump, read_dump(tmp_path / "theirs.safetensors")).verdict == "same"


class Lora(torch.nn.Module):
    """A linear with an adapter beside it, as PEFT puts it in the linear's place."""

    def __init__(self, base, rank=2):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.base_layer = base
        self.lora_A = torch.nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = torch.nn.Linear(rank, base.out_features, bias=False)
        for part in (self.lora_A, self.lora_B):
            part.weight.data = 0.3 * torch.randn(part.weight.shape, generator=generator)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Wrapped(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_wrapped_model_is_recorded_with_its_adapter(folders, models):
    hf = live(folders["dense"])
    attention = hf.model.layers[2].self_attn
    base = attention.o_proj.weight.detach().numpy().copy()
    attention.o_proj = Lora(attention.o_proj)
    merged = base + (attention.o_proj.lora_B.weight @ attention.o_proj.lora_A.weight).detach().numpy()
    wrapped = Wrapped(hf)
    with numgemma.capture(wrapped, IDS) as dump:
        run(wrapped)
    ours = models["dense"].record(IDS)
    assert set(dump) == set(ours)
    found = diff(ours, dump)
    assert found.first == "layers.2.self_attn.o_proj"
    context = dump["layers.2.self_attn.context"].reshape(len(IDS), -1)
    assert relative(context @ merged.T, dump["layers.2.self_attn.o_proj"]) < 1e-6
    assert dump.meta["engine"]["class"] == "Wrapped"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of PEFT itself
@pytest.mark.skipif(find_spec("peft") is None, reason="needs peft; the test above wraps by hand")
def test_a_model_wrapped_by_peft_is_recorded_with_its_adapter(folders, models):
    import peft

    config = peft.LoraConfig(target_modules=["o_proj"], layers_to_transform=[2], init_lora_weights=False, r=2)
    wrapped = peft.get_peft_model(live(folders["dense"]), config)
    with numgemma.capture(wrapped, IDS) as dump:
        run(wrapped)
    ours = models["dense"].record(IDS)
    assert set(dump) == set(ours)
    assert diff(ours, dump).first == "layers.2.self_attn.o_proj"


def test_an_adapter_in_a_tower_is_recorded_under_the_name_of_the_linear_it_replaces(multimodal_folders):
    hf = live(multimodal_folders["e4b"])
    ids, arrays = tiny.multimodal_prompt("e4b")
    media = read_media(arrays)
    for linear in (
        hf.model.vision_tower.encoder.layers[1].self_attn.q_proj,
        hf.model.audio_tower.layers[0].self_attn.q_proj,
    ):
        linear.linear = Lora(linear.linear)
    with numgemma.capture(hf, ids, media=media) as dump:
        pass
    ours = numgemma.load(multimodal_folders["e4b"]).record(ids, media=media)
    assert set(dump) == set(ours)
    same = [name for name in ours if relative(ours[name], dump[name]) < 1e-4]
    assert "vision_tower.encoder.layers.1.self_attn.k_proj" in same
    assert "vision_tower.encoder.layers.1.self_attn.q_proj" not in same
    assert "audio_tower.layers.0.self_attn.q_proj" not in same


def test_bfloat16_stays_bfloat16(folders):
    hf = live(folders["ple"], "bfloat16", "eager")  # fused attention rounds elsewhere
    with numgemma.capture(hf, IDS) as dump:
        run(hf)
    assert dump.meta["precision"] == "bfloat16"
    assert str(dump["layers.1.out"].dtype) == "bfloat16"
    assert diff(numgemma.load(folders["ple"], "bfloat16").record(IDS), dump).verdict == "same"


def test_the_model_is_afterwards_what_it_was(folders):
    hf = live(folders["ple"]).train()
    untouched, before, methods = copy.deepcopy(hf.state_dict()), hooks_of(hf), changed_methods(hf)
    modelling = hooks.modelling_of(hf)
    functions = {name: vars(modelling)[name] for name in ("apply_rotary_pos_emb", "eager_attention_forward")}
    with numgemma.capture(hf, IDS) as dump:
        hf(torch.tensor([IDS]))
    assert dump.meta["engine"] | {"mode": "train", "device": "cpu"} == dump.meta["engine"]
    assert hf.training
    assert (hooks_of(hf), changed_methods(hf)) == (before, methods)
    assert {name: vars(modelling)[name] for name in functions} == functions
    assert all(torch.equal(x, untouched[name]) for name, x in hf.state_dict().items())


def test_an_exception_inside_the_block_comes_out_as_it_is_and_leaves_no_hook(folders):
    hf = live(folders["ple"])
    before, methods = hooks_of(hf), changed_methods(hf)
    with pytest.raises(ZeroDivisionError), numgemma.capture(hf, IDS):
        run(hf)[IDS[0] // 0]
    assert (hooks_of(hf), changed_methods(hf)) == (before, methods)
    with numgemma.capture(hf, IDS) as dump:
        run(hf)
    assert "logits" in dump


def test_another_model_run_inside_the_block_is_not_recorded(folders, models):
    hf, other = live(folders["ple"], attention="eager"), live(folders["dense"], attention="eager")
    with numgemma.capture(hf, IDS) as dump:
        run(other)
        run(hf)
        run(other)
    assert diff(models["ple"].record(IDS), dump).verdict == "same"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda hf: run(hf, [2, 5, 99, *IDS[3:]]), "At position 2 the model was run on token 99, and the ids have 100"),
        (lambda hf: run(hf, IDS[:4]), "on the first 4 of 9 tokens"),
        (lambda hf: run(hf, [*IDS, 4]), "was run on 10 tokens, and the ids are 9"),
        (lambda hf: hf(torch.tensor([IDS, IDS])), "on a batch"),
        (lambda hf: run(hf, attention_mask=torch.tensor([[0] + 8 * [1]])), "with padding"),
    ],
)
def test_what_is_no_run_of_these_ids_is_refused_in_a_sentence(folders, body, says):
    hf = live(folders["ple"])
    before = hooks_of(hf)
    with pytest.raises(InputError, match=says), numgemma.capture(hf, IDS):
        body(hf)
    assert hooks_of(hf) == before


def test_sound_that_capture_was_not_told_of_is_refused(multimodal_folders):
    hf = live(multimodal_folders["e4b"])
    ids, arrays = tiny.multimodal_prompt("e4b", {"clips": [13]})
    given = hooks.hf_inputs(ids, read_media(arrays), {"image": 190, "video": 192, "audio": 191})
    with pytest.raises(InputError, match="give capture them too, as media="), numgemma.capture(hf, ids):
        hf(**{name: torch.tensor(x) for name, x in given.items()})


def test_pictures_that_capture_was_not_told_of_are_refused(multimodal_folders):
    hf = live(multimodal_folders["26b"])
    ids, arrays = tiny.multimodal_prompt("26b")
    media = read_media(arrays)
    given = hooks.hf_inputs(ids, media, {"image": 190, "video": 192, "audio": 191})
    given = {name: torch.tensor(x) for name, x in given.items()}
    with pytest.raises(InputError, match="give capture them too, as media="), numgemma.capture(hf, ids):
        hf(**given)
    with torch.no_grad(), numgemma.capture(hf, ids, media=media) as dump:
        hf(**given)
    assert diff(numgemma.load(multimodal_folders["26b"]).record(ids, media=media), dump).verdict == "same"


def test_a_model_that_is_none_of_transformers_or_none_of_gemma_is_refused():
    with (
        pytest.raises(InputError, match="Linear: holds no model of Transformers"),
        numgemma.capture(torch.nn.Linear(2, 2), IDS),
    ):
        pass
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=200
        )
    )
    with pytest.raises(InputError, match="model_type"), numgemma.capture(llama, IDS):
        pass


def weights_told(ours, dump):
    return next(f for f in precheck(ours, dump).findings if f.what == "weights")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_the_weights_that_are_held_are_those_of_the_file(folders, models, variant, dtype):
    hf = live(folders[variant], dtype)
    if dtype == "bfloat16" and variant == "moe":
        hf.set_experts_implementation("eager")  # rows so short are none of PyTorch's fused experts' own
    with numgemma.capture(hf, IDS) as dump:
        pass
    found, ours = weights_told(models[variant].record(IDS), dump), models[variant].checkpoint.samples
    assert found.state == "same", found.says
    assert None not in dump.meta["model"]["samples"].values()
    assert len(dump.meta["model"]["samples"]) > 0.8 * len(ours)


@pytest.mark.parametrize("kind", OF_A_KIND)
def test_the_weights_of_every_family_are_told_on_the_spot_too(tmp_path, kind):
    model = numgemma.load(OF_A_KIND[kind](tmp_path / "m"))
    hf = hooks.load_hf(model.checkpoint.folder, torch.float32)
    found = held(hf, model.family.shapes(model.config))
    assert len(found) >= 50
    assert found.items() <= model.checkpoint.samples.items()


def test_the_capture_of_a_file_whose_towers_did_not_run_finds_the_floor_of_that_file(tmp_path):
    model = numgemma.load(OF_A_KIND["gemma4"](tmp_path / "m"))
    theirs = Dump(hooks.describe(model, IDS))
    hooks.capture(model, np.asarray(IDS), theirs)
    kept = [cache_path(meta["model"], IDS, "float32") for meta in (theirs.meta, model.record(IDS).meta)]
    assert kept[0] == kept[1]


def test_a_weight_that_was_edited_in_memory_is_named(folders, models):
    hf = live(folders["dense"])
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    with numgemma.capture(hf, IDS) as dump:
        run(hf)
    found = weights_told(models["dense"].record(IDS), dump)
    assert found.state == "differs"
    assert "1 of " in found.says
    assert "layers.1.mlp.up_proj.weight" in found.says


def test_a_weight_that_is_changed_inside_the_block_is_told_as_it_ran(folders, models):
    hf = live(folders["dense"])
    with numgemma.capture(hf, IDS) as dump, torch.no_grad():
        hf.model.norm.weight.mul_(2)
        run(hf)
        hf.model.norm.weight.div_(2)
    assert "as norm.weight" in weights_told(models["dense"].record(IDS), dump).says


@pytest.mark.parametrize("how", ["float16", "wrapped", "integers"])
def test_a_weight_in_another_form_is_unknown_and_no_fault(folders, models, how):
    hf = live(folders["dense"], "float16" if how == "float16" else "float32")
    layer = hf.model.layers[1].mlp
    if how == "wrapped":
        layer.up_proj = Lora(layer.up_proj)
    if how == "integers":
        layer.up_proj = Rounded(layer.up_proj)
    with numgemma.capture(hf, IDS) as dump:
        run(hf)
    found = weights_told(models["dense"].record(IDS), dump)
    assert found.state == "unknown", found.says
    count = len(dump.meta["model"]["samples"]) if how == "float16" else 1
    assert f"{count} cannot be compared" in found.says
    assert how == "float16" or "layers.1.mlp.up_proj.weight" in found.says


class Rounded(torch.nn.Module):
    """A linear that holds its weight in eight bits, as a quantised one does."""

    def __init__(self, linear):
        super().__init__()
        self.step = float(linear.weight.detach().abs().max()) / 127
        whole = (linear.weight.detach() / self.step).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.step)
