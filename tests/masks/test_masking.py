"""Masks on a live model: the parameter objects, paths and classes stay; all can be undone."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from secateur.errors import MaskError
from secateur.masks.classes import mask_of
from secateur.masks.masking import dense, is_masked, masks_on, put_on, take_off
from tests import zoo


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))


@pytest.fixture
def masks(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ["0.weight", "0.bias", "2.weight"]
    return {n: torch.rand(model.get_parameter(n).shape, generator=generator) > 0.5 for n in names}


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_put_on_then_the_forward_uses_multiplied_weights(model, masks, example):
    reference = copy.deepcopy(model)
    put_on(model, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            reference.get_parameter(name).mul_(mask)
    assert is_masked(model)
    assert torch.equal(model(example), reference(example))


def test_put_on_then_the_model_has_the_same_parameter_objects(model, masks):
    before = [(name, id(p)) for name, p in model.named_parameters()]
    put_on(model, masks)
    assert [(name, id(p)) for name, p in model.named_parameters()] == before
    assert isinstance(model[0], nn.Conv2d)
    take_off(model)
    assert [(name, id(p)) for name, p in model.named_parameters()] == before
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_put_on_when_a_mask_is_of_any_dtype_then_it_means_the_same(model, masks, dtype):
    put_on(model, {name: mask.to(dtype) for name, mask in masks.items()})
    assert_equal(masks_on(model), masks)


def test_put_on_when_the_callers_mask_changes_then_the_models_does_not(model, masks):
    put_on(model, masks)
    expected = masks["0.weight"].clone()
    masks["0.weight"].zero_()
    assert torch.equal(masks_on(model)["0.weight"], expected)


def test_put_on_when_done_twice_then_the_second_replaces_the_first_in_place(model, masks):
    before = copy.deepcopy(model)
    put_on(model, masks)
    buffer = mask_of(model[0], "weight")
    put_on(model, {name: ~mask for name, mask in masks.items()})
    assert mask_of(model[0], "weight") is buffer
    assert torch.equal(model[0].weight, before[0].weight * ~masks["0.weight"])


def test_put_on_when_the_same_mask_is_put_on_again_then_nothing_changes(model, masks, example):
    put_on(model, masks)
    before, keys = model(example), list(model.state_dict())
    put_on(model, masks)
    assert torch.equal(model(example), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("bake", [True, False])
def test_take_off_then_keys_are_plain_and_masked_weights_are_zero_if_baked(model, masks, bake):
    before = state(model)
    put_on(model, masks)
    take_off(model, bake=bake)
    assert not is_masked(model)
    assert masks_on(model) == {}
    expected = {n: v * masks[n] if bake and n in masks else v for n, v in before.items()}
    assert_equal(state(model), expected)


@pytest.mark.parametrize("bake", [True, False])
def test_take_off_when_nothing_is_on_then_nothing_changes(model, bake):
    before = state(model)
    take_off(model, bake=bake)
    assert_equal(state(model), before)


@pytest.mark.parametrize("bake", [True, False])
def test_take_off_when_an_optimizer_holds_the_parameters_then_it_still_trains_them(
    model, masks, example, bake
):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    put_on(model, masks)
    take_off(model, bake=bake)
    before = state(model)
    model(example).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_take_off_when_a_parameter_was_frozen_then_it_stays_so(model, masks):
    model[0].weight.requires_grad_(False)
    put_on(model, masks)
    take_off(model)
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_deepcopy_when_a_recurrent_layer_is_masked_then_its_copies_compute_the_same(kind):
    layer, x = kind(4, 6, num_layers=2, batch_first=True), torch.randn(2, 5, 4)
    put_on(layer, {"weight_hh_l0": torch.rand(layer.weight_hh_l0.shape) > 0.5})
    expected = layer(x)[0]  # with gradients: what it multiplies by has a graph
    again = copy.deepcopy(copy.deepcopy(layer))
    torch.testing.assert_close(again(x)[0], expected)
    torch.testing.assert_close(layer(x)[0], expected)
    again(x)[0].sum().backward()
    assert bool(again._parameters["weight_hh_l0"].grad.any())


def test_deepcopy_when_masks_are_on_then_the_copy_is_masked_by_itself(model, masks, example):
    put_on(model, masks)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(example), model(example))
    put_on(twin, {name: torch.ones_like(mask) for name, mask in masks.items()})
    assert_equal(masks_on(model), masks)


@pytest.mark.parametrize("bake", [True, False])
def test_take_off_when_there_is_a_copy_then_the_copy_works_and_is_still_masked(
    model, masks, example, bake
):
    put_on(model, masks)
    before, twin = model(example), copy.deepcopy(model)
    take_off(model, bake=bake)
    assert torch.equal(twin(example), before)
    assert_equal(masks_on(twin), masks)
    take_off(twin)
    assert torch.equal(twin(example), before)
    assert type(twin[0]) is nn.Conv2d


def test_put_on_when_a_copy_gets_another_mask_then_the_original_does_not(model, masks, example):
    put_on(model, {"0.weight": masks["0.weight"]})
    before, twin = model(example), copy.deepcopy(model)
    put_on(twin, masks)
    assert list(masks_on(model)) == ["0.weight"]
    assert torch.equal(model(example), before)


def test_dense_when_a_mask_is_on_then_returns_what_is_below_it(model, masks):
    before = model[0].weight.detach().clone()
    assert torch.equal(dense(model[0], "weight"), before)
    put_on(model, masks)
    assert torch.equal(dense(model[0], "weight"), before)
    assert not dense(model[0], "weight").requires_grad


def test_put_on_when_the_model_is_cast_then_the_mask_follows(model, masks, example):
    put_on(model, masks)
    model.double()
    assert model(example.double()).dtype == torch.float64


def test_put_on_when_a_parameter_is_tied_then_each_place_has_its_mask_and_the_tie_holds():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    first, second = torch.ones(4, 4), torch.ones(4, 4)
    first[0], second[1] = 0, 0
    put_on(model, {"0.weight": first, "1.weight": second})
    take_off(model)
    assert model[1].weight is model[0].weight
    assert torch.equal(model[0].weight == 0, (first * second) == 0)


@pytest.mark.parametrize("on", [False, True], ids=["bare", "masked"])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("0.wieght", (8, 3, 3, 3), r"no parameter '0.wieght'. Did you mean '0.weight'"),
        ("9.weight", (8, 3, 3, 3), r"no parameter '9.weight'"),
        ("0.weight", (8, 3), r"'0.weight' is \(8, 3\), not \(8, 3, 3, 3\)"),
        ("0", (8,), r"no parameter '0'"),
    ],
)
def test_put_on_when_a_mask_fits_nothing_then_says_so_and_changes_nothing(
    model, masks, on, name, shape, message
):
    if on:
        put_on(model, masks)
    before, was_on = state(model), masks_on(model)
    with pytest.raises(MaskError, match=message):
        put_on(model, {"2.bias": torch.zeros(4), name: torch.zeros(shape)})
    assert_equal(state(model), before)
    assert_equal(masks_on(model), was_on)


def test_put_on_when_a_weight_has_another_parametrization_then_says_what_to_do(model):
    nn.utils.parametrizations.weight_norm(model[2])
    before = state(model)
    with pytest.raises(MaskError, match=r"'2.weight' has a parametrization already"):
        put_on(model, {"0.bias": torch.zeros(8), "2.weight": torch.ones(4, 32)})
    take_off(model)
    assert_equal(state(model), before)


# what trains, copies and saves a masked model


def test_state_dict_when_masks_are_on_then_names_are_plain_and_values_masked(model, masks):
    before = state(model)
    put_on(model, masks)
    expected = {n: v * masks[n] if n in masks else v for n, v in before.items()}
    assert_equal(state(model), expected)
    assert_equal({n: p.detach() for n, p in model.named_parameters()}, before)


def test_load_state_dict_when_masks_are_on_then_a_model_without_them_computes_the_same(
    model, masks, example
):
    put_on(model, masks)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(example), model(example))


def test_load_state_dict_when_the_state_is_dense_then_all_is_replaced(model, masks):
    put_on(model, masks)
    other = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    assert_equal({n: p.detach() for n, p in model.named_parameters()}, other)


def test_load_state_dict_when_the_state_is_masked_then_what_is_below_stays(model, masks):
    before = state(model)
    put_on(model, masks)
    saved = {name: 2 * value for name, value in model.state_dict().items()}
    model.load_state_dict(saved)
    for name, parameter in model.named_parameters():
        mask = masks.get(name, torch.ones(parameter.shape, dtype=torch.bool))
        assert torch.equal(parameter.detach(), torch.where(mask, 2 * before[name], before[name]))


def test_save_when_pickled_whole_then_the_copy_is_masked(model, masks, example, tmp_path):
    put_on(model, masks)
    torch.save(model, tmp_path / "model.pt")
    twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(twin(example), model(example))
    assert_equal(masks_on(twin), masks)


def test_averaged_model_when_made_before_masks_then_it_averages_the_dense_weights(model, masks):
    model[0].register_buffer("steps", torch.zeros(()))  # a copy pairs buffers by position
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    put_on(model, masks)
    average.update_parameters(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update_parameters(model)
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + 0.5, msg=name)


def test_optimizer_when_made_with_or_without_masks_then_its_state_fits_both(model, masks, example):
    twin = copy.deepcopy(model)
    put_on(model, masks)
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (model, twin)]
    model(example).sum().backward()
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    shapes = [optimizers[1].state[p]["exp_avg"].shape for p in twin.parameters()]
    assert shapes == [p.shape for p in twin.parameters()]


def test_backward_when_masks_are_on_then_masked_weights_have_no_gradient(model, masks, example):
    put_on(model, masks)
    with torch.autocast("cpu", torch.bfloat16):
        model(example).sum().backward()
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not parameter.grad[~masks[name]].any(), name
            assert parameter.grad[masks[name]].any(), name


def test_compile_when_masks_change_then_the_graph_is_whole_and_not_compiled_again(
    model, masks, example
):
    put_on(model, masks)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    expected = model(example)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.equal(compiled(example), expected)
    put_on(model, {name: ~mask for name, mask in masks.items()})
    assert torch.equal(compiled(example), model(example))
    assert not torch.equal(model(example), expected)
    assert len(graphs) == 1


def test_put_on_when_a_recurrent_layer_is_masked_then_its_forward_uses_the_mask():
    layer, x = nn.LSTM(4, 5, batch_first=True), torch.randn(2, 3, 4)
    dense_output = layer(x)[0]
    put_on(layer, {"weight_hh_l0": torch.zeros(20, 5)})
    expected = layer(x)[0]
    assert not torch.equal(expected, dense_output)
    take_off(layer)
    assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((8, 40, 3, 3), 0), ((8, 40, 3, 3), 1), ((64, 64), 0), ((64, 64), 1), ((9,), 0)],
)
def test_put_on_when_whole_slices_are_masked_then_as_with_single_weights(shape, dim):
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape))
    keep = torch.arange(shape[dim]) % 3 > 0
    view = [1] * len(shape)
    view[dim] = -1
    mask = keep.view(view).expand(shape)
    put_on(module, {"weight": mask})
    assert torch.equal(module.weight, dense(module, "weight") * mask)
    assert torch.equal(masks_on(module)["weight"], mask)


def test_save_pretrained_when_masks_are_on_then_it_loads_elsewhere_with_the_same_outputs(tmp_path):
    zoo.torchvision_models()  # transformers imports torchvision
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    put_on(
        model,
        {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters()},
    )
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


TAKES = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune by rows": lambda layer: prune.ln_structured(layer, "weight", 0.5, 1, 0),
    "prune globally": lambda layer: prune.global_unstructured(
        [(layer, "weight")], prune.L1Unstructured, amount=0.5
    ),
    "parametrize": lambda layer: parametrize.register_parametrization(
        layer, "weight", nn.Identity()
    ),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "del": lambda layer: delattr(layer, "weight"),
}


WRITES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "chained": lambda layer: layer.weight.detach().clamp_(-0.01, 0.01),
    "data in place": lambda layer: layer.weight.data.copy_(torch.ones_like(layer.weight)),
    "data": lambda layer: setattr(layer.weight, "data", torch.ones_like(layer.weight)),
    "data +=": lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
    "initialised": lambda layer: nn.init.normal_(layer.weight),
    "an element": lambda layer: layer.weight.__setitem__(0, 1.0),
    "an operator": lambda layer: layer.weight.__itruediv__(2),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@torch.no_grad()
def test_writing_to_what_a_masked_parameter_reads_as_is_refused(model, masks, example, write):
    put_on(model, masks)
    expected = model(example)
    with pytest.raises(MaskError, match="'weight' of Linear is masked.*lost.*named_parameters"):
        write(model[2])
    assert torch.equal(model(example), expected)
    take_off(model)
    before = model(example)
    write(model[2])  # and where no mask is on, it is written
    assert not torch.equal(model(example), before)


def test_what_a_masked_parameter_reads_as_computes_as_a_plain_tensor(model, masks):
    put_on(model, masks)
    read = model[2].weight
    for made in (read * 2, read.clone(), read.t(), read[0], torch.stack([read]), read.float() + 1):
        assert type(made) is Tensor
    assert torch.equal(copy.deepcopy(read.detach()), read)
    assert type(copy.deepcopy(read.detach())) is Tensor
    file = io.BytesIO()
    torch.save(read.detach(), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), read)


def test_type_of_a_masked_layer_when_it_makes_another_then_that_has_no_masks(model, masks):
    put_on(model, masks)
    made = type(model[2])(3, 2)
    assert isinstance(made, nn.Linear)
    assert not is_masked(made)
    assert list(made.state_dict()) == ["weight", "bias"]
    assert made.weight is made._parameters["weight"]
    assert torch.equal(copy.deepcopy(made)(torch.ones(3)), made(torch.ones(3)))
    put_on(made, {"bias": torch.tensor([True, False])})
    assert made.bias[1] == 0
    take_off(made)
    assert type(made) is nn.Linear


@pytest.mark.parametrize("how", TAKES)
def test_what_takes_a_masked_parameter_away_is_refused(
    model: nn.Module, masks: dict[str, Tensor], example: Tensor, how: str
) -> None:
    put_on(model, masks)
    before, output = state(model), model(example)
    with pytest.raises(MaskError, match="'weight' of Linear is masked.*finish"):
        TAKES[how](model[2])
    assert_equal(state(model), before)
    assert torch.equal(model(example), output)
    take_off(model)
    TAKES[how](model[2])  # as ever, once no mask is on


def test_a_parameter_taken_out_of_the_dict_is_told(
    model: nn.Module, masks: dict[str, Tensor], example: Tensor
) -> None:
    put_on(model, masks)
    del model[2]._parameters["weight"]
    with pytest.raises(MaskError, match="'weight' of Linear is masked"):
        model(example)


def test_state_dict_when_written_to_in_place_then_what_would_be_lost_is_refused(model, masks):
    put_on(model, masks)
    state = model.state_dict()
    for name in masks:
        with pytest.raises(MaskError, match="is lost"):
            state[name].mul_(2)
    state["2.bias"].mul_(2)
    assert torch.equal(state["2.bias"], model.get_parameter("2.bias"))


def test_state_dict_when_copied_or_saved_then_its_tensors_are_plain_and_its_own(
    model, masks, tmp_path
):
    put_on(model, masks)
    state = model.state_dict()
    torch.save(state, tmp_path / "state.pt")
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "state.safetensors")
    copies = (
        copy.deepcopy(state),
        torch.load(tmp_path / "state.pt"),
        {n: t.clone() for n, t in state.items()},
    )
    for found in (*copies, load_file(tmp_path / "state.safetensors")):
        assert {type(tensor) for tensor in found.values()} == {Tensor}
        assert_equal({n: found[n] for n in state}, state)
        for tensor in found.values():
            tensor.mul_(2)
    both = copy.deepcopy([model[0].weight.detach(), model[0].bias.detach()])
    assert [part.shape for part in both] == [model[0].weight.shape, model[0].bias.shape]
