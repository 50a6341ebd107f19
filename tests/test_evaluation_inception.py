"""The FID's Inception-v3 against the published structure written out in NumPy and in PyTorch.

The reference works on channels-first arrays under the port's names, and is given the padding of
every layer by hand; so a wrong padding, pooling, branch or name shows.
"""

import jax
import numpy as np
import pytest

from ddpm_jax.evaluation import (
    InceptionV3,
    inception_variables_from_torch,
    inception_variables_to_torch,
    load_inception_weights,
)
from ddpm_jax.evaluation import inception_weights as weights_module
from ddpm_jax.evaluation.inception_weights import inception_shapes


class NumpyOps:
    """Convolution and pooling as sums over shifted copies, in float64."""

    cat = staticmethod(lambda xs: np.concatenate(xs, axis=1))
    relu = staticmethod(lambda x: np.maximum(x, 0))
    array = staticmethod(lambda x: np.asarray(x, np.float64))

    @staticmethod
    def taps(x, kernel, stride, padding, fill):
        (h, w), (ph, pw) = kernel, padding
        x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
        rows, columns = (x.shape[2] - h) // stride + 1, (x.shape[3] - w) // stride + 1
        for i in range(h):
            for j in range(w):
                part = x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
                yield i, j, part[:, :, :rows, :columns]

    def conv(self, x, weight, stride, padding):
        return sum(
            np.einsum("bchw,oc->bohw", part, weight[:, :, i, j], optimize=True)
            for i, j, part in self.taps(x, weight.shape[2:], stride, padding, 0.0)
        )

    def maximum(self, x, stride, padding):
        taps = self.taps(x, (3, 3), stride, (padding, padding), -np.inf)
        return np.max([part for _, _, part in taps], axis=0)

    def average(self, x):
        total = sum(part for _, _, part in self.taps(x, (3, 3), 1, (1, 1), 0.0))
        ones = np.ones_like(x[:1, :1])
        return total / sum(part for _, _, part in self.taps(ones, (3, 3), 1, (1, 1), 0.0))


class TorchOps:
    """The same by PyTorch's own functions, float32."""

    def __init__(self, torch):
        self.f, self.array = torch.nn.functional, lambda x: torch.from_numpy(np.array(x))
        self.cat, self.relu = (lambda xs: torch.cat(xs, 1)), torch.relu

    def conv(self, x, weight, stride, padding):
        return self.f.conv2d(x, weight, stride=stride, padding=padding)

    def maximum(self, x, stride, padding):
        return self.f.max_pool2d(x, 3, stride=stride, padding=padding)

    def average(self, x):
        return self.f.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def reference(tensors, images, ops):
    """Runs the port's network: (pool, spatial, logits without bias, logits), NumPy arrays."""

    def unit(name, x, *, stride=1, padding=(0, 0)):
        x = ops.conv(x, ops.array(tensors[f"{name}.conv.weight"]), stride, padding)
        scale, bias, mean, variance = (
            ops.array(tensors[f"{name}.bn.{part}"])[None, :, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ops.relu((x - mean) / (variance + 0.001) ** 0.5 * scale + bias)

    def chain(block, x, *layers):
        for name, padding in layers:
            x = unit(f"{block}.{name}", x, padding=padding)
        return x

    o, h, w = (0, 0), (3, 0), (0, 3)  # paddings: none, of 7×1, of 1×7

    def a(n, x):
        five = chain(n, x, ("branch5x5_1", o), ("branch5x5_2", (2, 2)))
        three = (("branch3x3dbl_1", o), ("branch3x3dbl_2", (1, 1)), ("branch3x3dbl_3", (1, 1)))
        pool = chain(n, ops.average(x), ("branch_pool", o))
        return ops.cat([chain(n, x, ("branch1x1", o)), five, chain(n, x, *three), pool])

    def c(n, x):
        seven = (("branch7x7_1", o), ("branch7x7_2", w), ("branch7x7_3", h))
        double = [("branch7x7dbl_1", o)]
        double += [(f"branch7x7dbl_{i}", h if i % 2 == 0 else w) for i in (2, 3, 4, 5)]
        pool = chain(n, ops.average(x), ("branch_pool", o))
        one = chain(n, x, ("branch1x1", o))
        return ops.cat([one, chain(n, x, *seven), chain(n, x, *double), pool]), one

    def e(n, x, pool):
        three = chain(n, x, ("branch3x3_1", o))
        double = chain(n, x, ("branch3x3dbl_1", o), ("branch3x3dbl_2", (1, 1)))
        parts = [chain(n, x, ("branch1x1", o))]
        for name, y in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
            parts += [unit(f"{n}.{name}a", y, padding=(0, 1))]
            parts += [unit(f"{n}.{name}b", y, padding=(1, 0))]
        return ops.cat([*parts, chain(n, pool, ("branch_pool", o))])

    x = ops.array(np.asarray(images).transpose(0, 3, 1, 2))
    x = unit("Conv2d_2a_3x3", unit("Conv2d_1a_3x3", x, stride=2))
    x = ops.maximum(unit("Conv2d_2b_3x3", x, padding=(1, 1)), 2, 0)
    x = ops.maximum(unit("Conv2d_4a_3x3", unit("Conv2d_3b_1x1", x)), 2, 0)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = a(name, x)
    n = "Mixed_6a"
    double = chain(n, x, ("branch3x3dbl_1", o), ("branch3x3dbl_2", (1, 1)))
    double = unit(f"{n}.branch3x3dbl_3", double, stride=2)
    x = ops.cat([unit(f"{n}.branch3x3", x, stride=2), double, ops.maximum(x, 2, 0)])
    x, _ = c("Mixed_6b", x)
    x, _ = c("Mixed_6c", x)
    x, spatial = c("Mixed_6d", x)
    x, _ = c("Mixed_6e", x)
    n = "Mixed_7a"
    three = unit(f"{n}.branch3x3_2", chain(n, x, ("branch3x3_1", o)), stride=2)
    seven = chain(n, x, ("branch7x7x3_1", o), ("branch7x7x3_2", w), ("branch7x7x3_3", h))
    seven = unit(f"{n}.branch7x7x3_4", seven, stride=2)
    x = ops.cat([three, seven, ops.maximum(x, 2, 0)])
    x = e("Mixed_7b", x, ops.average(x))
    x = np.asarray(e("Mixed_7c", x, ops.maximum(x, 1, 1)))
    pool = x.mean(axis=(2, 3))
    spatial = np.asarray(spatial)[:, :7].transpose(0, 2, 3, 1).reshape(len(x), -1)
    unbiased = pool @ np.asarray(tensors["fc.weight"]).T
    return pool, spatial, unbiased, unbiased + np.asarray(tensors["fc.bias"])


def test_the_shapes_are_the_callers_own():
    inception_shapes().clear()
    assert inception_shapes()


def random_tensors(seed=0):
    """Every tensor drawn, so that none could be left out unnoticed; scaled to keep activations."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, shape in inception_shapes().items():
        name = weights_module.inception_weight_map([path])[path]
        if len(shape) == 4:
            drawn = rng.standard_normal((shape[3], shape[2], *shape[:2]), np.float32)
            tensors[name] = drawn * np.float32(np.sqrt(2 / np.prod(shape[:3])))
        elif name.endswith(("bn.weight", "running_var")):
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            scale = 0.02 if len(shape) == 2 else 0.2
            tensors[name] = rng.standard_normal(shape[::-1], np.float32) * np.float32(scale)
    return tensors


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def variables(tensors):
    return inception_variables_from_torch(tensors)


def close(found, expected, tolerance):
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        theirs = np.asarray(theirs)
        assert ours.shape == theirs.shape, name
        assert ours.dtype == np.float32 and theirs.std() > 1e-3, f"{name} decides nothing"
        np.testing.assert_allclose(
            ours, theirs, atol=tolerance * np.abs(theirs).max(), err_msg=name
        )


def test_equals_a_float64_reference(tensors, variables):
    """At 139×139 the maps are 15, 7 and 3 wide: every tap and every border counts."""
    images = np.random.default_rng(1).uniform(-1, 1, (1, 139, 139, 3)).astype(np.float32)
    found = jax.jit(InceptionV3().apply)(variables, images)
    close(found, reference(tensors, images, NumpyOps()), 1e-5)
    assert found.spatial.shape == (1, 7 * 7 * 7)


def test_equals_pytorch_at_full_size(tensors, variables):
    torch = pytest.importorskip("torch", reason="PyTorch is what this compares with")
    images = np.random.default_rng(2).uniform(-1, 1, (1, 299, 299, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(tensors, images, TorchOps(torch))
    close(jax.jit(InceptionV3().apply)(variables, images), expected, 1e-4)


def test_shapes_and_counts():
    """2023 = 17·17·7 spatial features; 23,834,568 parameters of torchvision's network without its
    auxiliary classifier, 8 more outputs of 2049 each, and mean and variance of 17,216 channels."""
    x = jax.ShapeDtypeStruct((2, 299, 299, 3), np.float32)
    output, variables = jax.eval_shape(InceptionV3().init_with_output, jax.random.key(0), x)
    assert [leaf.shape for leaf in output] == [(2, 2048), (2, 2023), (2, 1008), (2, 1008)]
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == 23_834_568 + 8 * 2049 + 2 * 17_216
    assert len(jax.tree.leaves(variables)) == 94 * 5 + 2


@pytest.mark.parametrize("shape", [(1, 299, 299, 1), (299, 299, 3), (1, 74, 299, 3)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match="at least 75 per side, RGB"):
        jax.eval_shape(InceptionV3().init, jax.random.key(0), np.zeros(shape, np.float32))


def test_the_map_goes_both_ways(tensors, variables):
    back = inception_variables_to_torch(variables)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_strict_about_names_and_shapes(tensors):
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.int64(0)}
    inception_variables_from_torch(tensors | counters)
    missing = {k: v for k, v in tensors.items() if k != "Mixed_6d.branch_pool.bn.running_var"}
    with pytest.raises(ValueError, match=r"1 \(Mixed_6d.branch_pool.bn.running_var\) missing"):
        inception_variables_from_torch(missing)
    more = tensors | {"AuxLogits.fc.bias": np.zeros(1000, np.float32)}
    with pytest.raises(ValueError, match=r"0 missing, 1 \(AuxLogits.fc.bias\) left over"):
        inception_variables_from_torch(more)
    torchvision = tensors | {"fc.weight": np.zeros((1000, 2048), np.float32)}
    with pytest.raises(ValueError, match=r"fc.weight is float32 \(1000, 2048\) instead of"):
        inception_variables_from_torch(torchvision)
    spoilt = tensors | {"fc.bias": np.full(1008, np.nan, np.float32)}
    with pytest.raises(ValueError, match="fc.bias has NaN"):
        inception_variables_from_torch(spoilt)


def _refuse(path, sha256):
    assert sha256 == weights_module.SHA256
    raise ValueError("no")


def test_a_pth_with_another_hash_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(weights_module, "read_torch_file", _refuse)
    with pytest.raises(ValueError, match="weights.pth is not the published file: no. Delete it"):
        load_inception_weights(file)
    with pytest.raises(FileNotFoundError, match="not a file"):
        load_inception_weights(tmp_path / "absent.pth")


def test_a_file_in_the_cache_is_checked_too(tmp_path):
    file = tmp_path / "inception" / weights_module.FILE
    file.parent.mkdir()
    file.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="Delete it and fetch https://github.com/mseitzer"):
        load_inception_weights(cache_dir=tmp_path)


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_module, "URL", "http://127.0.0.1:9/weights.pth")
    with pytest.raises(ConnectionError) as caught:
        load_inception_weights(cache_dir=tmp_path)
    for part in ("http://127.0.0.1:9/weights.pth", weights_module.SHA256, str(tmp_path)):
        assert part in str(caught.value)
    assert weights_module.FILE.split("-")[-1] == weights_module.SHA256[:8] + ".pth"


def test_safetensors_with_the_same_names(tmp_path, tensors, variables):
    library = pytest.importorskip("safetensors.numpy", reason="it writes the file to be read")
    library.save_file(tensors, tmp_path / "weights.safetensors")
    found = load_inception_weights(tmp_path / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="cut.safetensors could not be read"):
        load_inception_weights(tmp_path / "cut.safetensors")
