"""The nets of the zoo: shapes, features, sizes that work, and names that don't."""

import subprocess
import sys

import pytest
import timm
import torch
from pydantic import BaseModel, ValidationError

from stillroom.errors import InputError
from tasks.nets.networks import features_of, head_of
from tasks.nets.zoo import NetName, build, feature_size, head_names

# The sides of digits and of Fashion-MNIST, and each net's odd ones.
USUAL = [(net, side_px, 1) for net in ("cnn", "convnet3:8", "mlp", "resnet18", "resnet18:4") for side_px in (8, 28)]
ODD = [("cnn:8", 4, 3), ("convnet3:8", 33, 3), ("mlp:16", 5, 3), ("timm/mobilenetv3_small_050", 32, 1)]


@pytest.mark.parametrize(("net", "side_px", "channels"), [*USUAL, *ODD])
def test_gives_logits_and_the_features_that_it_announces(net, side_px, channels):
    module = build(net, num_classes=7, channels=channels, side_px=side_px).eval()
    images = torch.rand(3, channels, side_px, side_px)
    with torch.inference_mode():
        logits, features = module(images), features_of(module, images)
    assert logits.shape == (3, 7)
    assert features.shape == (3, feature_size(net, channels=channels, side_px=side_px))


@pytest.mark.parametrize(
    ("net", "head"),
    [("cnn", "head"), ("convnet3:8", "head"), ("mlp", "head"), ("resnet18", "fc"), ("resnet18:4", "fc"), ("timm/mobilenetv3_small_050", "classifier")],
)
def test_the_last_layer_over_the_features_gives_the_logits(net, head):
    module = build(net, num_classes=7, channels=1, side_px=32).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(getattr(module, head)(features_of(module, images)), module(images))
    assert head_of(module) is getattr(module, head)
    assert not net.startswith("timm/") or head_names(net) == (head,)


def test_resnet_takes_torchvisions_weights_at_usual_sizes():
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=7).eval()
    ours = build("resnet18", num_classes=7, channels=3, side_px=64).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


def test_a_narrow_resnet_is_torchvisions_with_fewer_channels():
    """A quarter of the width: of a convolution between layers a sixteenth of the weights, and as many layers."""
    wide, narrow = (build(net, num_classes=7, channels=3, side_px=32).state_dict() for net in ("resnet18", "resnet18:16"))
    assert list(wide) == list(narrow)
    assert wide["layer3.0.conv2.weight"].numel() == 16 * narrow["layer3.0.conv2.weight"].numel()
    deviations = [narrow[name].std().item() * (narrow[name].shape[0] * 9 / 2) ** 0.5 for name in ("layer1.0.conv1.weight", "layer4.1.conv2.weight")]
    assert deviations == pytest.approx([1, 1], abs=0.1)  # He's, by the outputs, as torchvision draws them
    assert build("resnet18:16", num_classes=7, channels=1, side_px=64).conv1.weight.shape == (16, 1, 7, 7)


def test_the_student_has_about_ten_thousand_parameters():
    assert sum(tensor.numel() for tensor in build("cnn", num_classes=10, channels=1, side_px=8).parameters()) == 10986


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("cnm", "unknown net 'cnm'; did you mean 'cnn'?"),
        ("transformer", "unknown net 'transformer'; there are cnn, convnet3, mlp, resnet18 and timm/<name>"),
        ("cnn:wide", "net 'cnn:wide': the width is a whole number, as in 'cnn:32'"),
        ("cnn:0", "net 'cnn:0': the width is a whole number, as in 'cnn:32'"),
        ("resnet18:9999", "net 'resnet18:9999': the width is a whole number, as in 'cnn:32'"),
    ],
)
def test_a_wrong_name_is_told_with_the_way_out(net, said):
    class Asked(BaseModel):
        net: NetName

    with pytest.raises(ValidationError) as refused:
        Asked(net=net)
    assert said in str(refused.value)
    with pytest.raises(InputError) as raised:
        build(net, num_classes=2, channels=1, side_px=8)
    assert str(raised.value) == f"net: {said}"


def test_timm_names_are_judged_by_timm():
    with pytest.raises(InputError, match=r"^net 'timm/mobilenetv3_smal': timm has no such model; near it: mobilenetv3_small"):
        build("timm/mobilenetv3_smal", num_classes=2, channels=3, side_px=32)


def test_an_image_too_small_for_the_pools_is_refused():
    with pytest.raises(InputError, match=r"^net 'convnet3': images of 7 px are too small for it; it takes 8 px or more$"):
        build("convnet3", num_classes=2, channels=1, side_px=7)


@pytest.mark.parametrize(("net", "side_px", "made_for"), [("timm/vgg11", 8, 224), ("timm/vit_tiny_patch16_224", 8, 224), ("timm/inception_v3", 32, 299)])
def test_an_image_that_a_timm_net_cannot_take_is_refused_by_one_line(net, side_px, made_for):
    told = rf"^net '{net}': images of {side_px} px don't pass through it; timm made it for {made_for} px$"
    with pytest.raises(InputError, match=told):
        feature_size(net, channels=3, side_px=side_px)
    with pytest.raises(InputError, match=told), torch.device("meta"):  # as it is on the CPU, and at once
        build(net, num_classes=5, channels=3, side_px=side_px)


def test_trying_the_size_leaves_a_timm_net_as_it_was_made():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ours, drawn = build("timm/mobilenetv3_small_050", num_classes=5, channels=3, side_px=32), torch.rand(1)
        torch.manual_seed(5)
        theirs, expected = timm.create_model("mobilenetv3_small_050", num_classes=5), torch.rand(1)
    assert ours.training and drawn == expected
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


def test_naming_nets_loads_no_torch():
    code = "import sys, tasks.nets.zoo as zoo, tasks.nets.models, tasks.nets.weights; zoo.feature_size('cnn', channels=1, side_px=8); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
