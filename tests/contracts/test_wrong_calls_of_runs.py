"""Wrong calls of what opens, makes and exports runs: interop, devices and programs.

`ROWS` has one right call per public function or method (see `wrong`); a new public name of these
rooms needs a row, or a reason in `ELSEWHERE`. Configurations are tested field by field below.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import types
import typing
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding

import ddpm_jax as dj
from ddpm_jax import interop
from ddpm_jax.devices import batched, cpu, mesh, processes
from ddpm_jax.interop import hub, stablehlo
from ddpm_jax.nn.unet import parameter_shapes
from ddpm_jax.programs import (
    chunks,
    classifier,
    config,
    convert,
    diffusion,
    evaluate,
    export,
    generator,
    publish,
    run_options,
    sample,
    train,
    trained_run,
)
from ddpm_jax.programs.config_values import with_types
from tests.contracts.test_wrong_calls_of_programs import KINDS as PROGRAM_KINDS
from tests.contracts.wrong import NOT_A_NUMBER, OBJECT, SCHEDULE, Net, call, row
from tests.fake_hub import serving

FOLDER = tempfile.TemporaryDirectory()
PLACE = pathlib.Path(FOLDER.name)


def own(module):
    """The names that a module defines itself."""
    named = {
        n: v for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
    }
    return types.SimpleNamespace(**named)


ROOMS = tuple(
    map(
        own,
        (hub, stablehlo, batched, cpu, mesh, processes, trained_run, train, generator, chunks)
        + (run_options, config, diffusion, sample, evaluate, export, convert, publish, classifier),
    )
)
CONFIGURATIONS = {
    name: value
    for room in ROOMS
    for name, value in vars(room).items()
    if dataclasses.is_dataclass(value)
}


def weights_of(unet, channels=1):
    """Parameters of a network, all 0.1."""
    shapes = parameter_shapes(unet, (8, 8, channels))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)


def small_unet(channels, num_groups):
    plain = {"channel_multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    return dj.UNet(channels=channels, num_groups=num_groups, out_channels=1, **plain)


UNET, WIDE = small_unet(8, 4), small_unet(64, 32)
PARAMS = weights_of(UNET)
STATE_DICT = interop.unet_params_to_diffusers(PARAMS, UNET)
VARIABLES = {
    interop.tensorflow_name(path): leaf
    for path, leaf in traverse_util.flatten_dict(weights_of(WIDE)).items()
}
PROCESS = interop.Process("cosine", 8, 1e-4, 0.02, False, "epsilon", "fixed_small", True)
CONFIG = interop.unet_to_diffusers_config(UNET, (8, 8, 1))
SCHEDULER = interop.process_to_diffusers_config(PROCESS, SCHEDULE)
TENSORS = {"a": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
interop.save_diffusers(PLACE / "pipeline", UNET, PARAMS, (8, 8, 1), PROCESS, SCHEDULE)
interop.write_safetensors(PLACE / "weights.safetensors", TENSORS)
np.savez(PLACE / "weights.npz", **TENSORS)
CLASSIFIER = PLACE / "classifier"
DIGITS = config.DataConfig(name="digits")
DEVICES = jax.devices()[:4]
SPLIT = batched.RowSplit(DEVICES)
ROWS_OF_MESH = NamedSharding(mesh.make_mesh(DEVICES), mesh.ROWS)
OPTIONS = run_options.RunOptions(pretrained="digits", out=PLACE / "out", num_devices=1)
RUN = trained_run.TrainedRun(OPTIONS)
STEPS = config.SamplerOptions("ddim", num_steps=2)
IMAGES, T = jnp.zeros((2, 8, 8, 1)), np.array([0, 100])


def shrink(params, labels):
    """The denoisers of a `Generator` without a network."""
    return lambda x_t, timesteps: params * x_t


GENERATOR = generator.Generator(RUN.sampler(STEPS), shrink, (8, 8, 1))
EXPORTED = stablehlo.export_sampler(dj.ddim(SCHEDULE), shrink, jnp.float32(0.5), (2, 2, 1))
stablehlo.save_program(PLACE / "saved.stablehlo", EXPORTED)


def cut(count, size):
    """`batches`, which are made as they are asked for."""
    return list(batched.batches(count, size))


def split_over(devices):
    """`RowSplit` and a call of it."""
    return batched.RowSplit(devices).round_up(3)


def agree(read):
    """`Agreed` and a call of it."""
    return processes.Agreed(read)()


def opened(options):
    """`TrainedRun`, of which only the name is returned."""
    return trained_run.TrainedRun(options).name


def opened_by_name(source, *, seed, num_devices):
    """`load_run`, likewise."""
    return trained_run.load_run(source, seed=seed, num_devices=num_devices).name


def denoise(label, *, guidance, clip):
    """`TrainedRun.denoiser` and a call of it."""
    return RUN.denoiser(label, guidance=guidance, clip=clip)(IMAGES, T)


def generate(sampler, *, guidance, clip, target_chunks):
    """`TrainedRun.generator` and a call of it."""
    options = {"guidance": guidance, "clip": clip, "target_chunks": target_chunks}
    return RUN.generator(sampler, **options)(RUN.params, seed=0, count=1).images


@contextlib.contextmanager
def with_a_hub():
    """A hub on this machine with one repository, and a token that may write it."""
    with serving(PLACE / "hub") as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "token-of-ada")
        served.repository("ada/tiny", {"config.json": b"{}"})
        yield


def fetch(repository, revision, choose, *, cache_dir):
    """`fetch_files`, of which only the number of files is returned."""
    with with_a_hub():
        fetched = hub.fetch_files(repository, revision, choose, cache_dir=cache_dir)
        return len(list(fetched.folder.iterdir()))


def publish_files(repository, files, message, *, private, branch, tag):
    """`publish`, likewise."""
    options = {"private": private, "branch": branch, "tag": tag}
    with with_a_hub():
        return len(hub.publish(repository, files, message, **options))


def log_in(repository):
    """`check_push`, of which nothing is returned."""
    with with_a_hub():
        hub.check_push(repository)


def make_generator(sampler, denoiser_of, *, target_chunks):
    """`Generator`, of which only the number of steps is returned."""
    options = {"target_chunks": target_chunks}
    return generator.Generator(sampler, denoiser_of, (8, 8, 1), **options).num_steps


NAMED = {
    "None": lambda v: None,
    "a list": lambda v: list(v.items()),
    "a number": lambda v: 3,
    "nothing": lambda v: {},
    "numbers as names": lambda v: dict(enumerate(v.values())),
    "an array": lambda v: np.ones(3),
}
TENSORS_BY_NAME = NAMED | {
    "another shape": lambda v: {k: np.asarray(x)[None] for k, x in v.items()},
    "strings": lambda v: dict.fromkeys(v, "a"),
    "complex": lambda v: {k: np.asarray(x) + 0j for k, x in v.items()},
    "one less": lambda v: dict(list(v.items())[1:]),
    "one more": lambda v: {**v, "more": np.ones(3)},
}


def without(kind, *names):
    return {name: change for name, change in PROGRAM_KINDS[kind].items() if name not in names}


FINITE = NOT_A_NUMBER | {"inf": lambda v: float("inf")}
KINDS = PROGRAM_KINDS | {
    "tensors": TENSORS_BY_NAME,
    "any tensors": {
        k: v
        for k, v in TENSORS_BY_NAME.items()
        if k not in ("nothing", "another shape", "one less", "one more")
    }
    | {
        "nan": lambda v: {k: x * np.nan for k, x in v.items()},
        "too large": lambda v: {k: x.astype(float) + 1e39 for k, x in v.items()},
    },
    "config": NAMED
    | {"another": lambda v: {"_class_name": "VQModel"}, "unknown": lambda v: {**v, "new": 1}},
    "unet": OBJECT | {"parameters": lambda v: PARAMS, "a class": lambda v: dj.UNet},
    "process": OBJECT | {"a config": lambda v: SCHEDULER},
    "table of the process": OBJECT | {"of another length": lambda v: dj.cosine_schedule(9)},
    # Where the right value is None, which is never traced.
    "count or None": without("whole or None", "traced"),
    "number or None": without("from 0 or None", "traced"),
    "path of names": {
        "None": lambda v: None,
        "text": lambda v: "conv_in/kernel",
        "one": lambda v: v[:1],
        "numbers": lambda v: (1, 2),
        "another module": lambda v: ("dense", *v[1:]),
        "another tensor": lambda v: (*v[:-1], "weights"),
        "nothing": lambda v: (),
    },
    "file names": {
        "None": lambda v: None,
        "text": lambda v: "config.json",
        "numbers": lambda v: [1],
        "nothing": lambda v: [],
        "pickles": lambda v: [name.replace("safetensors", "bin") for name in v],
    },
    "image shape": {
        "None": lambda v: None,
        "a number": lambda v: 8,
        "two": lambda v: v[:2],
        "four": lambda v: (1, *v),
        "floats": lambda v: (8.5, 8, 1),
        "zero": lambda v: (0, 8, 1),
        "strings": lambda v: ("8", "8", "1"),
        "an array": lambda v: np.ones(3),
    },
    "event shape": {
        "None": lambda v: None,
        "a number": lambda v: 8,
        "floats": lambda v: (8.5, *v[1:]),
        "zero": lambda v: (0, *v[1:]),
        "strings": lambda v: ("8", "8", "1"),
        "an array": lambda v: np.ones(3),
    },
    "dtypes": {"None": lambda v: None, "text": lambda v: "F32", "a number": lambda v: 3},
    "dtype": {"integers": lambda v: np.int8, "complex": lambda v: np.complex64},
    "program": OBJECT | {"bytes": lambda v: b"program"},
    "facts": {"a number": lambda v: 3, "text": lambda v: "facts"},
    "inputs": PROGRAM_KINDS["split"]
    | {"noise of none": lambda v: "x_T_noise", "no size": lambda v: "seed"},
    "repository": OBJECT
    | {
        **{text: lambda v, text=text: text for text in ("", "tiny", "a/b/c", "a/..", "a b/c")},
        "bytes": lambda v: b"ada/tiny",
    },
    "reference": {
        "a number": lambda v: 3,
        "bytes": lambda v: b"main",
        **{text: lambda v, text=text: text for text in ("", "a b", "a..b", "-a", "a:b", "a.lock")},
    },
    "files to publish": NAMED
    | {
        "text": lambda v: "config.json",
        "numbers": lambda v: dict.fromkeys(v, 3),
    },
    "platforms": {"text": lambda v: "cpu", "another": lambda v: ("abacus",), "none": lambda v: ()},
    "devices of a mesh": PROGRAM_KINDS["devices"] | {"None": lambda v: None},
    "sharding": OBJECT | {"a spec": lambda v: mesh.ROWS},
    "rows": {
        "a number": lambda v: 3,
        "none": lambda v: v[:0],
        "too many": lambda v: np.ones((9, 3)),
        "an array of one number": lambda v: np.ones(()),
    },
    "specs": {"None": lambda v: None, "a number": lambda v: 3},
    "run options": OBJECT
    | {
        "another configuration": lambda v: STEPS,
        "a class": lambda v: type(v),
        **{
            f"{name}={wrong!r}": lambda v, name=name, wrong=wrong: dataclasses.replace(
                v, **{name: wrong}
            )
            for name, wrong in (
                *(("seed", 1.5), ("seed", -1), ("seed", 2**32), ("seed", None), ("ema", None)),
                *(("checkpoint", "3"), ("data_path", 3), ("num_devices", 0), ("pretrained", 3)),
            )
        },
    },
    "sampler options": OBJECT
    | {
        "another configuration": lambda v: OPTIONS,
        "a misspelling": lambda v: dataclasses.replace(v, sampler="DDIM"),
        "another spacing": lambda v: dataclasses.replace(v, num_steps=None, spacing="even"),
        "nan": lambda v: dataclasses.replace(v, eta=float("nan")),
        "inf": lambda v: config.SamplerOptions("heun", churn=float("inf")),
        "half a step": lambda v: dataclasses.replace(v, num_steps=2.5),
        "too many steps": lambda v: dataclasses.replace(v, num_steps=201),
    },
    "run": {
        "None": lambda v: None,
        "a number": lambda v: 3,
        "bytes": lambda v: b"digits",
        "a run": lambda v: RUN,
    },
    "guidance": FINITE | {"of a network without labels": lambda v: 2.0},
    "label": {
        "a class": lambda v: 3,
        "a name": lambda v: "three",
        "a float": lambda v: 0.5,
        "an array": lambda v: np.arange(2),
    },
    "seed of images": {k: v for k, v in PROGRAM_KINDS["from 0"].items()}
    | {"33 bits": lambda v: 2**32},
    "conditions": {
        "a number": lambda v: 3,
        "an array": lambda v: np.ones((2, 3)),
        "a label": lambda v: {"label": [1, 2]},
        "another than the network's": lambda v: {"cond": np.ones((2, 3))},
    },
    "rows by name": {
        "a number": lambda v: 3,
        "an array": lambda v: np.ones((2, 3)),
        "fewer rows": lambda v: {"cond": np.ones((1, 3))},
        "a number by name": lambda v: {"cond": 3},
    },
    "labels of images": {
        "a number": lambda v: 3,
        "floats": lambda v: np.ones(2),
        "fewer": lambda v: np.zeros(1, int),
        "text": lambda v: "01",
    },
    "images": PROGRAM_KINDS["images"]
    | {
        "three channels": lambda v: jnp.zeros((2, 8, 8, 3)),
        "uint8": lambda v: np.zeros((2, 8, 8, 1), np.uint8),
    },
    "images of the network": {
        "None": lambda v: None,
        "a number": lambda v: 3.0,
        "no batch": lambda v: v[0],
        "three channels": lambda v: jnp.zeros((2, 8, 8, 3)),
        "uint8": lambda v: np.zeros((2, 8, 8, 1), np.uint8),
        "a list": lambda v: [v],
    },
    "steps of the run": {
        "None": lambda v: None,
        "floats": lambda v: v / 200,
        "T": lambda v: v + 100,
        "-1": lambda v: v - 1,
        "one [1]": lambda v: v[:1],
        "a column": lambda v: v[:, None],
        "text": lambda v: "0",
    },
    "counts": {
        "None": lambda v: None,
        "a number": lambda v: 3,
        "nothing": lambda v: [],
        "floats": lambda v: [0.5],
        "zero": lambda v: [0, 4],
        "text": lambda v: "12",
    },
    "shares": {
        "None": lambda v: None,
        "a number": lambda v: 0.5,
        "nothing": lambda v: [],
        "zero": lambda v: [0.0],
        "above 1": lambda v: [1.5],
        "text": lambda v: "12",
        "nan": lambda v: [float("nan")],
    },
}
path, whole, flag = ("path", PLACE / "pipeline"), ("whole", 4), ("flag", True)
unet, shape, work = ("unet", UNET), ("image shape", (8, 8, 1)), ("callable", lambda: False)
table = ("table of the process", SCHEDULE)
guidance, clip = ("guidance", 1.0), ("clip", True)
ROWS = {
    "tensorflow_name": row(
        interop.tensorflow_name,
        path=("path of names", ("conv_in", "kernel")),
        scope=("text", "model"),
    ),
    "unet_from_tensorflow": row(
        interop.unet_from_tensorflow,
        variables=("tensors", VARIABLES),
        resolution=("whole", 8),
        average=flag,
    ),
    "unet_params_from_diffusers": row(
        interop.unet_params_from_diffusers, state_dict=("tensors", STATE_DICT), unet=unet
    ),
    "unet_params_to_diffusers": row(
        interop.unet_params_to_diffusers, params=("tree", PARAMS), unet=unet
    ),
    "choose_pipeline_files": row(
        interop.choose_pipeline_files,
        names=(
            "file names",
            ["config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"],
        ),
        where=("text", "here"),
    ),
    "pipeline_files": row(interop.pipeline_files, folder=path),
    "load_diffusers": row(interop.load_diffusers, folder=path),
    "save_diffusers": row(
        interop.save_diffusers,
        folder=path,
        unet=unet,
        params=("tree", PARAMS),
        image_shape=shape,
        process=("process", PROCESS),
        schedule=table,
    ),
    "process_from_diffusers_config": row(
        interop.process_from_diffusers_config, config=("config", SCHEDULER)
    ),
    "process_to_diffusers_config": row(
        interop.process_to_diffusers_config, process=("process", PROCESS), schedule=table
    ),
    "unet_from_diffusers_config": row(
        interop.unet_from_diffusers_config, config=("config", CONFIG)
    ),
    "unet_to_diffusers_config": row(interop.unet_to_diffusers_config, unet=unet, image_shape=shape),
    "read_npz": row(interop.read_npz, path=("path", PLACE / "weights.npz")),
    "read_safetensors": row(
        interop.read_safetensors,
        path=("path", PLACE / "weights.safetensors"),
        dtypes=("dtypes", ("F32",)),
    ),
    "write_safetensors": row(
        interop.write_safetensors,
        path=("path", PLACE / "new.safetensors"),
        tensors=("any tensors", TENSORS),
        dtype=("dtype", np.dtype(np.float32)),
    ),
    "fetch_files": row(
        fetch,
        repository=("repository", "ada/tiny"),
        revision=("reference", "main"),
        choose=("callable", lambda names, where: names),
        cache_dir=("path or None", PLACE / "hub"),
    ),
    "publish": row(
        publish_files,
        repository=("repository", "ada/tiny"),
        files=("files to publish", {"config.json": PLACE / "pipeline" / "model_index.json"}),
        message=("text", "message"),
        private=flag,
        branch=("reference", "next"),
        tag=("reference", "v1"),
    ),
    "check_push": row(log_in, repository=("repository", "ada/tiny")),
    "check_repository": row(hub.check_repository, repository=("repository", "ada/tiny")),
    "export_sampler": row(
        stablehlo.export_sampler,
        sampler=("sampler", dj.ddim(SCHEDULE)),
        denoiser_of=("callable", shrink),
        params=("unchecked", jnp.float32(0.5)),
        shape=("event shape", (2, 2, 1)),
        inputs=("inputs", "x_T"),
        batch_size=("count or None", None),
        label=("number or None", None),
        bake=flag,
        platforms=("platforms", ("cpu",)),
    ),
    "save_program": row(
        stablehlo.save_program,
        path=("path", PLACE / "new.stablehlo"),
        exported=("program", EXPORTED),
        about=("facts", {}),
    ),
    "load_program": row(stablehlo.load_program, path=("path", PLACE / "saved.stablehlo")),
    "batches": row(cut, count=("from 0", 5), size=whole),
    "RowSplit": row(split_over, devices=("devices of a mesh", DEVICES)),
    "RowSplit.round_up": row(SPLIT.round_up, size=whole),
    "RowSplit.map": row(
        SPLIT.map, function=("callable", jnp.sin), in_specs=("specs", (mesh.ROWS,))
    ),
    "RowSplit.put": row(SPLIT.put, rows=("rows", np.ones((3, 2))), size=whole),
    "RowSplit.replicate": row(SPLIT.replicate, tree=("unchecked", np.ones(3))),
    "one_device_per_core": row(cpu.one_device_per_core),
    "keep_freed_memory": row(
        cpu.keep_freed_memory,
        batch_size=whole,
        image_shape=("event shape", (8, 8, 1)),
        channels=("whole", 8),
    ),
    "may_have_accelerators": row(cpu.may_have_accelerators),
    "usable_cores": row(cpu.usable_cores, root=("path", Path("/"))),
    "all_devices": row(mesh.all_devices, count=("whole or None", 2)),
    "make_mesh": row(
        mesh.make_mesh, devices=("devices of a mesh", DEVICES), parameter_shards=("small whole", 2)
    ),
    "put": row(mesh.put, tree=("unchecked", np.ones((4, 2))), sharding=("sharding", ROWS_OF_MESH)),
    "fetch": row(mesh.fetch, tree=("unchecked", jnp.ones(3))),
    "own_rows": row(mesh.own_rows, size=whole),
    "connect": row(
        processes.connect,
        auto=("flag", False),
        coordinator=("text or None", None),
        num_processes=("count or None", None),
        process_id=("number or None", None),
        bind=("text or None", None),
        heartbeat_seconds=whole,
        start_seconds=whole,
    ),
    "pin_random_numbers": row(processes.pin_random_numbers),
    "pin_single_precision": row(processes.pin_single_precision),
    "num_processes": row(processes.num_processes),
    "is_leader": row(processes.is_leader),
    "everywhere": row(processes.everywhere, work=work),
    "on_leader": row(processes.on_leader, work=work),
    "Agreed": row(agree, read=work),
    "TrainedRun": row(opened, options=("run options", OPTIONS)),
    "load_run": row(
        opened_by_name,
        source=("run", "digits"),
        seed=("seed of images", 0),
        num_devices=("whole or None", 1),
    ),
    "TrainedRun.apply_fn": row(
        RUN.apply_fn,
        x_t=("images of the network", IMAGES),
        timesteps=("steps of the run", T),
        label=("label", None),
    ),
    "TrainedRun.denoiser": row(denoise, label=("label", None), guidance=guidance, clip=clip),
    "TrainedRun.sample": row(
        RUN.sample,
        count=("whole", 2),
        sampler=("split", "ddim"),
        num_steps=("whole or None", 2),
        label=("label", None),
        conditions=("conditions", None),
        guidance=guidance,
        seed=("seed of images", 0),
        batch_size=whole,
    ),
    "TrainedRun.folder": row(RUN.folder, name=("text", "name")),
    "TrainedRun.provenance": row(RUN.provenance),
    "TrainedRun.need_heldout": row(RUN.need_heldout, least=("from 0", 2)),
    "TrainedRun.labels": row(RUN.labels, count=whole, label=("label", None)),
    "TrainedRun.sampler": row(RUN.sampler, options=("sampler options", STEPS)),
    "TrainedRun.generator": row(
        generate,
        sampler=("sampler", dj.ddim(dj.respace(RUN.schedule, np.array([0, 199])))),
        guidance=guidance,
        clip=clip,
        target_chunks=whole,
    ),
    "Generator": row(
        make_generator,
        sampler=("sampler", dj.ddim(SCHEDULE)),
        denoiser_of=("callable", shrink),
        target_chunks=whole,
    ),
    "Generator()": row(
        GENERATOR,
        params=("unchecked", jnp.float32(0.5)),
        seed=("seed of images", 0),
        count=("whole", 2),
        batch_size=whole,
        start=("seed of images", 0),
        labels=("labels of images", None),
        conditions=("rows by name", None),
        frames_of=("from 0", 1),
        on_progress=("callable", lambda steps: None),
        should_stop=work,
    ),
    "chunk_length": row(chunks.chunk_length, num_steps=("whole", 12), target_chunks=whole),
    "common_chunk": row(chunks.common_chunk, counts=("counts", [4, 8]), target_chunks=whole),
    "load_classifier": row(classifier.load_classifier, folder=("path", CLASSIFIER)),
    "depth_counts": row(
        chunks.depth_counts,
        num_steps=("whole", 12),
        shares=("shares", [0.5, 1.0]),
        flag=("text", "--depth_counts"),
    ),
}
PROGRAM = "takes one configuration: the tests of configurations below"
PART = "a part of a program, called with a checked configuration"
ELSEWHERE = {
    **dict.fromkeys(CONFIGURATIONS, "a configuration: each field below"),
    **dict.fromkeys(("train", "sample", "evaluate", "export", "convert", "push", "pull"), PROGRAM),
    **dict.fromkeys(("from_diffusers", "from_tensorflow", "to_diffusers", "to_weights"), PART),
    "write_weights": PART,
    "train_classifier": PROGRAM,
    "accuracy": PART,
    **dict.fromkeys(("train_config", "write_run", "markdown_row"), PART),
    **dict.fromkeys(("check_config", "check_seed", "sampler_options"), PART),
    **dict.fromkeys(("weighting_of", "loss_name", "check_process_fields", "check_diffusion"), PART),
    **dict.fromkeys(
        ("check_devices", "check_references", "check_source"), "a check, which names its caller"
    ),
    **dict.fromkeys(("ReverseProcess", "TrainedRun.study_folder"), "of the studies: test_studies"),
}
DOCUMENTED = {
    ("batches", "count, size", "exchanged"): (
        "two numbers of one range: another call that is right",
        lambda result, right: result == [slice(0, 4)],
    ),
    ("process_from_diffusers_config", "config", "nothing"): (
        "what DDPMScheduler has without a setting",
        lambda result, right: (result.schedule, result.num_timesteps) == ("linear", 1000),
    ),
}
NET = Net(
    (interop, *ROOMS),
    ROWS,
    DOCUMENTED,
    ELSEWHERE,
    KINDS,
    classes=True,
    methods=(trained_run.TrainedRun, batched.RowSplit),
    passed_on={
        **dict.fromkeys(("check_push", "check_repository", "publish"), "OWNER/NAME"),
        "fetch_files": "OWNER/NAME cache_root",
        "load_diffusers": "pipeline_files",
        "save_diffusers": "unet_to_diffusers_config process_to_diffusers_config unet_params_to",
        "choose_pipeline_files": "DDPMPipeline pickle",
        "TrainedRun": "--seed choose_devices",
        "load_run": "TrainedRun --seed choose_devices",
        "TrainedRun.apply_fn": "UNet network",
        "TrainedRun.denoiser": "UNet guidance",
        "TrainedRun.sample": "Generator guidance --label spaced_timesteps",
        "TrainedRun.labels": "--label",
        "TrainedRun.sampler": "spaced_timesteps",
        "TrainedRun.generator": "Generator guidance grid_steps make_denoiser",
        "Generator": "grid_steps",
        "depth_counts": "--depth",
    },
)


@pytest.fixture(scope="module", autouse=True)
def trained_classifier():
    """What `load_classifier` reads; trained when the first of these tests runs."""
    options = {"epochs": 1, "batch_size": 512, "channels": 8, "data": DIGITS}
    classifier.train_classifier(classifier.ClassifierConfig(CLASSIFIER, **options))


def test_every_public_name_has_a_row():
    assert not NET.missing()


@pytest.mark.parametrize("name", ROWS)
def test_the_right_call_is_right(name):
    call(ROWS[name], {})


@pytest.mark.parametrize("name", ROWS)
def test_wrong_calls_raise_an_error_of_ours(name):
    faults = NET.faults(name)
    assert not faults, "\n".join([name, *faults])


@pytest.mark.parametrize(
    "name",
    NET.with_whole_numbers(),
)
def test_whole_numbers_may_be_floats(name):
    assert not NET.refused_floats(name)


def test_documented_meanings_are_reached():
    assert not NET.unreached()


# Configurations: what programs are called with, from Python as from the command line.
REQUIRED = {"run_dir": PLACE / "run", "num_steps": 4}
PROGRAMS = {
    "train": (train.train, config.TrainConfig(**REQUIRED)),
    "sample": (sample.sample, sample.SampleConfig(pretrained="digits")),
    "train_classifier": (classifier.train_classifier, classifier.ClassifierConfig()),
    "evaluate": (evaluate.evaluate, evaluate.EvaluateConfig(pretrained="digits")),
    "export": (export.export, export.ExportConfig(pretrained="digits")),
    "convert": (convert.convert, convert.ToWeights(pretrained="digits")),
    "push": (publish.push, publish.PushConfig(pretrained="digits", repository="ada/tiny")),
    "pull": (publish.pull, publish.PullConfig("ada/tiny")),
}
UNFIT = (1j, b"bytes", {1: 2})
"""Values of no field."""
WRONG_VALUES = {
    int: (1.5, "1", True, None, [1], float("nan"), np.ones(1), 2**63),
    float: ("1", True, None, [1.0], float("nan"), float("inf"), 1j, jnp.ones(1)),
    bool: (1, "True", None, 0.0),
    str: (3, None, b"text", ["text"]),
    Path: (3, None, b"path", ["path"], "a\0b"),
    tuple: (3, None, "12", {1: 2}, ("x", 3.5j), np.ones(2)),
}


def wrong_values(hint):
    """Values that no field of this type takes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [wrong_values(argument) for argument in arguments if argument is not type(None)]
        # A value must be wrong for each; None is right where it is one of them.
        kept = [v for v in parts[0] if all(any(v is w for w in part) for part in parts[1:])]
        return [v for v in kept if v is not None or type(None) not in arguments]
    if origin is typing.Literal:
        return [3.5, None, "another", ["another"], np.ones(2), *UNFIT]
    if dataclasses.is_dataclass(hint):
        return [3, None, "text", hint, *UNFIT]
    return [*WRONG_VALUES[origin or hint], *UNFIT]


FIELDS = [
    (kind, name, hint)
    for kind in CONFIGURATIONS.values()
    for name, hint in typing.get_type_hints(kind).items()
]


@pytest.mark.parametrize(
    "kind,name,hint", FIELDS, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_a_field_of_another_type_is_refused(kind, name, hint):
    required = REQUIRED if kind is config.TrainConfig else {}
    right = kind(**required)
    assert with_types("here", right, kind) == right
    tried = wrong_values(hint)
    assert tried
    option = name.replace("_", "-")
    for wrong in tried:
        with pytest.raises((ValueError, TypeError), match=rf"here: --{option}\b"):
            with_types("here", dataclasses.replace(right, **{name: wrong}), kind)


def with_a_wrong(right, value):
    """The configuration with this value in its first field, whose type is another."""
    return dataclasses.replace(right, **{dataclasses.fields(right)[0].name: value})


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    "wrong",
    [
        *(None, "digits", 3, {"run_dir": "runs/digits"}, STEPS),
        lambda right: type(right),
        lambda right: with_a_wrong(right, 1.5),
        lambda right: with_a_wrong(right, float("nan")),
        lambda right: with_a_wrong(right, [3]),
    ],
)
def test_a_program_refuses_what_is_not_its_configuration(name, wrong, tmp_path, monkeypatch):
    """Before it computes or writes anything."""
    monkeypatch.chdir(tmp_path)
    program, right = PROGRAMS[name]
    with pytest.raises((ValueError, TypeError), match=rf"^{name}"):
        program(wrong(right) if callable(wrong) else wrong)
    assert not list(tmp_path.iterdir())


def test_a_configuration_takes_text_for_paths_lists_for_tuples_and_numbers_of_numpy():
    network = config.NetworkConfig(channel_multipliers=[1, np.int64(2)])  # type: ignore[arg-type]
    data = config.DataConfig(path="images")  # type: ignore[arg-type]
    given = config.TrainConfig("run", np.int32(4), seed=np.int64(3), network=network, data=data)  # type: ignore[arg-type]
    right = config.TrainConfig(
        Path("run"),
        4,
        seed=3,
        network=config.NetworkConfig(channel_multipliers=(1, 2)),
        data=config.DataConfig(path=Path("images")),
    )
    assert with_types("train", given, config.TrainConfig) == right
