"""The list of models: each model's tree, its origins, and the refusals with their remedies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cache_dit_serving.config.models import ENTRY_SECTIONS, SERVER_LIMITS
from cache_dit_serving.config.printed import printed
from cache_dit_serving.config.reading import Resolved, load_settings, resolve
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE, MODELS_VARIABLE, OVERRIDE_PREFIX
from cache_dit_serving.errors import ConfigError
from tests.support.server import ROOT

KONTEXT = """
about: {task: image editing}
model: {path: maker/kontext, dtype: float16}
cache: {max_warmup_steps: 4, residual_diff_threshold: 0.1}
defaults: {width: 512, pipeline_arguments: {clip_skip: 2}}
limits: {max_side: 2048, max_upload_bytes: 50000000}
"""
KEY = "sk-secret-0123456789"
TWO = """
limits: {max_queue: 7, max_side: 1024, max_num_images: 3}
outputs: {root: kept}
residency: {max_device_bytes: 1000000}
server: {switch_after_s: 20}
models:
  - name: flux
    configuration: flux
    aliases: [dall-e-3, gpt-image-1]
  - name: kontext
    configuration: more/kontext.yaml
    settings:
      model: {path: /models/kontext}
      cache: {max_warmup_steps: 6}
      defaults: {pipeline_arguments: {other: 1}}
      limits: {max_num_images: 2}
    resident: always
    default: true
"""


def written(folder: Path, text: str = TWO) -> dict[str, str]:
    """The variables that name a file with this list, beside the configuration more/kontext.yaml."""
    (folder / "more").mkdir(exist_ok=True)
    (folder / "more" / "kontext.yaml").write_text(KONTEXT)
    (folder / "server.yaml").write_text(text)
    return {CONFIG_VARIABLE: str(folder / "server.yaml")}


def listed(folder: Path, text: str = TWO, **variables: str) -> Resolved:
    return resolve(written(folder, text) | {f"{OVERRIDE_PREFIX}{key}": value for key, value in variables.items()})


def refusal(folder: Path, text: str, **variables: str) -> str:
    with pytest.raises(ConfigError) as raised:
        listed(folder, text, **variables)
    return str(raised.value)


def entries(*settings: str) -> str:
    """A list of models m0, m1 ..., each with these settings, in YAML's flow style."""
    return "models:\n" + "".join(f"- {{name: m{index}, settings: {each}}}\n" for index, each in enumerate(settings))


@pytest.mark.parametrize("environ", [{}, {CONFIG_VARIABLE: "flux"}, {f"{OVERRIDE_PREFIX}MODEL__PATH": "/some/model"}])
def test_without_a_list_there_is_one_model_with_the_whole_tree(environ: dict[str, str]) -> None:
    resolved = resolve(environ)
    [model] = resolved.models
    assert model.settings is resolved.settings
    assert (model.name, model.aliases, model.resident, model.is_default) == ("", (), "always", True)
    assert model.configuration == resolved.name


def test_the_default_model_is_the_first_of_the_models(tmp_path: Path) -> None:
    kontext, flux = listed(tmp_path).models
    assert (kontext.name, kontext.configuration, kontext.resident) == ("kontext", "kontext", "always")
    assert (flux.name, flux.configuration, flux.resident) == ("flux", "flux", "on-demand")
    assert (kontext.is_default, flux.is_default) == (True, False)
    assert flux.aliases == ("dall-e-3", "gpt-image-1")
    first, _ = listed(tmp_path, entries("{model: {path: a/b}}", "{model: {path: c/d}}")).models
    assert (first.name, first.configuration, first.is_default) == ("m0", "", True)


def test_an_entrys_settings_lie_over_those_of_its_configuration_key_by_key(tmp_path: Path) -> None:
    kontext, flux = listed(tmp_path).models
    assert kontext.settings.model.path == "/models/kontext"
    assert kontext.settings.model.dtype == "float16"
    assert kontext.settings.cache is not None
    assert (kontext.settings.cache.max_warmup_steps, kontext.settings.cache.residual_diff_threshold) == (6, 0.1)
    assert kontext.settings.defaults.pipeline_arguments == {"clip_skip": 2, "other": 1}
    assert kontext.settings.about.task == "image editing"
    own = load_settings({CONFIG_VARIABLE: "flux"})
    for section in ("about", "model", "cache", "speeds", "quantize", "compile", "attention_backend", "defaults"):
        assert getattr(flux.settings, section) == getattr(own, section)
    uncached = TWO.replace("cache: {max_warmup_steps: 6}", "cache: null")
    assert listed(tmp_path, uncached).models[0].settings.cache is None


def test_limits_beside_the_list_are_the_defaults_of_every_entry(tmp_path: Path) -> None:
    kontext, flux = (model.settings.limits for model in listed(tmp_path).models)
    assert (flux.max_queue, flux.max_side, flux.max_num_images) == (7, 1024, 3)
    assert (kontext.max_queue, kontext.max_side, kontext.max_num_images) == (7, 2048, 2)
    by_variable = listed(tmp_path, LIMITS__MAX_SIDE="128", LIMITS__MAX_QUEUE="9").models
    assert [(model.settings.limits.max_queue, model.settings.limits.max_side) for model in by_variable] == [
        (9, 2048),
        (9, 128),
    ]
    shadowed = listed(tmp_path, "shadow: {share: 0.5, keep: true}\n" + entries("{shadow: {share: 0.1}}", "{about: {}}"))
    assert [(model.settings.shadow.share, model.settings.shadow.keep) for model in shadowed.models] == [
        (0.1, True),
        (0.5, True),
    ]


def test_the_server_has_the_sections_of_the_default_model_and_the_greatest_limits(tmp_path: Path) -> None:
    resolved = listed(tmp_path, TWO.replace("limits: {max_num_images: 2}", "limits: {max_step_s: 60}"))
    kontext, _ = resolved.models
    settings = resolved.settings
    for section in Settings.model_fields.keys() - {"limits", "models"}:
        assert getattr(settings, section) == getattr(kontext.settings, section), section
    assert (settings.limits.max_upload_bytes, settings.limits.max_step_s) == (50_000_000, 1800)
    assert settings.limits.max_side == 2048
    assert kontext.settings.limits.max_step_s == 60
    assert [entry.name for entry in settings.models] == ["flux", "kontext"]
    for model in resolved.models:
        assert model.settings.models == ()
        assert model.settings.outputs.root == Path("kept")
        assert model.settings.residency.max_device_bytes == 1_000_000
        assert model.settings.server.switch_after_s == 20


def test_each_models_values_have_their_origins(tmp_path: Path) -> None:
    resolved = listed(tmp_path, LIMITS__MAX_NUM_IMAGES="5")
    assert resolved.origin("models.1.settings.model.path") == "server.yaml"
    assert resolved.origin("models.1.settings.model.dtype") == "kontext.yaml"
    assert resolved.origin("models.0.settings.model.path") == "flux.yaml"
    assert resolved.origin("models.0.settings.limits.max_num_images") == f"{OVERRIDE_PREFIX}LIMITS__MAX_NUM_IMAGES"
    assert resolved.origin("models.1.settings.limits.max_num_images") == "server.yaml"
    assert resolved.origin("model.dtype") == "kontext.yaml"
    assert resolved.origin("server.switch_after_s") == "server.yaml"
    assert resolved.described() == (
        f"configuration {tmp_path}/server.yaml: CACHE_DIT_SERVING_CONFIG names it; models kontext (configuration "
        "kontext, the default), flux (configuration flux); "
        f"limits.max_num_images by {OVERRIDE_PREFIX}LIMITS__MAX_NUM_IMAGES"
    )


def test_a_variable_may_give_the_whole_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "[{name: one, configuration: more/kontext.yaml}]"
    in_place = listed(tmp_path, MODELS=text)
    assert [model.name for model in in_place.models] == ["one"]
    assert in_place.settings.limits.max_queue == 7
    alone = resolve({MODELS_VARIABLE: text})
    assert alone.models[0].settings.model.path == "maker/kontext"
    assert alone.configuration.why == f"{MODELS_VARIABLE} lists the models"
    assert [model.name for model in resolve({MODELS_VARIABLE: "{name: one, configuration: flux}"}).models] == ["one"]
    with pytest.raises(ConfigError, match=f"^{MODELS_VARIABLE}: model a: unknown key 'models.0.settings.modle'"):
        resolve({MODELS_VARIABLE: "[{name: a, settings: {modle: {}}}]"})
    with pytest.raises(ConfigError, match="no variable sets a part of the list of models"):
        listed(tmp_path, MODELS__FLUX__MODEL__PATH="x/y")


def test_paths_of_configurations_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    resolved = listed(tmp_path)
    assert resolved.settings.models[1].configuration == str(tmp_path / "more" / "kontext.yaml")
    assert resolved.settings.models[0].configuration == "flux"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entries("{modle: {path: x}}"), "model m0: unknown key 'models.0.settings.modle'; did you mean 'model'?"),
        (entries("{}"), "model m0 has neither configuration nor settings"),
        (
            entries("{about: {}}", "{cache: {Fn_compute_block: 1}}"),
            "unknown key 'models.1.settings.cache.Fn_compute_block'; did you mean 'Fn_compute_blocks'?",
        ),
        (entries("{about: {}}", "{model: {path: 3}}"), "model m1: 'models.1.settings.model.path': should be a"),
        (entries("{cache_config: {Fn: 1}}"), "unknown key 'models.0.settings.cache.Fn'"),
        (entries("{model: {loras: [{name: a}]}}"), "'models.0.settings.model.loras.0.path': Field required"),
        (
            "server: {warm_up: false}\n" + entries("{about: {}}", "{speeds: {warm_up: true}}"),
            "model m1: speeds.warm_up has no effect with server.warm_up false",
        ),
        ("models: [{nam: a}]", "unknown key 'models.0.nam'; did you mean 'name'?"),
        ("models: [{name: ' a', configuration: flux}]", "'models.0.name'"),
        ("models: [{name: a, resident: allways, configuration: flux}]", "'models.0.resident'"),
        ("models: [{name: a, configuration: flx}]", "'models.0.configuration': no configuration named 'flx'; did you"),
        ("models: [{name: a, configuration: no.yaml}]", "no.yaml does not exist"),
        (
            "models: [{name: a, configuration: flux, aliases: b}, {name: b, configuration: flux}]",
            "'models': two names or aliases are b",
        ),
        (
            "models: [{name: a, configuration: flux, default: true}, {name: b, configuration: flux, default: true}]",
            "'models': a and b cannot all be the default",
        ),
        (
            "model: {path: x/y}\ncache: null\n" + entries("{about: {}}"),
            "'model' stands beside the list of models (model.path by server.yaml); models.<name>.settings.model has it",
        ),
        (
            entries("{server: {workers: 2}}"),
            "'models.0.settings.server' holds for the whole server; move it to the top",
        ),
        (entries("{residency: {}}"), "'models.0.settings.residency' holds for the whole server"),
        (entries("{models: []}"), "'models.0.settings.models' lists models itself"),
        (
            entries("{limits: {max_queue: 2}}"),
            "'models.0.settings.limits.max_queue' holds for the whole server; move it to limits.max_queue at the top",
        ),
        (
            "server: {model_names: [x]}\n" + entries("{about: {}}"),
            "'server.model_names' has no effect on a list of models; models.<name>.aliases has them",
        ),
        (
            "server: {on_load_failure: retry}\n" + entries("{about: {}}"),
            "'server.on_load_failure': retry has no effect on a list of models, since the next request",
        ),
        (
            "parallelism: {ulysses_size: 2}\n" + entries("{about: {}}", "{about: {}}"),
            "'parallelism' (m0, m1): there is one model a server with parallelism",
        ),
        (entries("{about: {}}", "{parallelism: {guidance: 2}}"), "'parallelism' (m1): there is one model a server"),
        (
            entries("{model: {cpu_threads: 2}}", "{about: {}}"),
            "'model.cpu_threads' holds for all models of a process, but m0 has 2, m1 has none; give all the same in "
            "models.<name>.settings.model.cpu_threads",
        ),
        (
            entries("{attention_backend: sage}", "{about: {}}"),
            "'attention_backend' holds for all models of a process, but m0 has sage, m1 has native",
        ),
        (
            entries("{compile: {mode: max-autotune}}", "{compile: {}}", "{about: {}}"),
            "'compile.mode' holds for all models of a process, but m0 has max-autotune, m1 has default; give",
        ),
        (entries("{compile: {folder: /a}}", "{compile: {}}"), "'compile.folder' holds for all models"),
        (
            "server: {workers: 2}\n" + entries("{model: {device: 'cuda:1'}}", "{about: {}}"),
            "'model.device' holds for all models of a process, but m0 has cuda:1, m1 has none",
        ),
        ("limits: {max_queu: 1}\n" + entries("{about: {}}"), "unknown key 'limits.max_queu'; did you mean 'max_queue'"),
    ],
)
def test_a_mistake_in_the_list_is_named_with_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_the_list_of_the_documentation_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    sample = page.partition("<!-- read by tests/config/test_models.py -->\n```yaml\n")[2].partition("```")[0]
    edit, flux, own = listed(tmp_path, sample).models
    assert (edit.name, edit.configuration, edit.aliases) == ("qwen-image-edit", "qwen-image-edit", ("gpt-image-1",))
    assert (flux.resident, flux.settings.model.path) == ("always", "/models/FLUX.1-dev")
    assert flux.settings.cache == load_settings({CONFIG_VARIABLE: "flux"}).cache
    assert (flux.settings.limits.max_num_images, flux.settings.limits.max_side) == (2, 2048)
    assert (own.configuration, own.settings.defaults.width, own.settings.cache) == ("", 1024, None)


def test_a_mistake_in_a_configurations_file_is_named_with_the_file(tmp_path: Path) -> None:
    written(tmp_path)
    entry = "models: [{name: a, configuration: own.yaml, settings: {defaults: {width: 64}}}]"
    for text, message in (
        ("cache: {max_warmup: 1}", "model a: unknown key 'models.0.configuration, own.yaml: cache.max_warmup'; did"),
        ("server: {workers: 2}", "models.0.configuration, own.yaml: server' holds for the whole server"),
        (
            "limits: {keep_jobs_s: 2}",
            "models.0.configuration, own.yaml: limits.keep_jobs_s' holds for the whole server",
        ),
        (entries("{about: {}}"), "models.0.configuration, own.yaml: models' lists models itself"),
        ("[1]", "'models.0.configuration': "),
    ):
        (tmp_path / "own.yaml").write_text(text)
        assert message in refusal(tmp_path, entry)


def test_a_variable_that_sets_a_section_of_a_model_is_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, TWO, MODEL__PATH="x/y", CACHE="null")
    assert f"'model' stands beside the list of models (model.path by {OVERRIDE_PREFIX}MODEL__PATH)" in said
    assert f"'cache' stands beside the list of models (cache by {OVERRIDE_PREFIX}CACHE)" in said


def test_what_models_may_differ_in(tmp_path: Path) -> None:
    differing = entries(
        "{model: {dtype: float16, device: cpu}, compile: {dynamic: false}, attention_backend: native}",
        "{model: {dtype: float32}, quantize: {quant_type: int8}}",
    )
    assert len(listed(tmp_path, differing).models) == 2


def test_a_list_of_one_may_be_written_as_its_entry(tmp_path: Path) -> None:
    resolved = listed(tmp_path, "models: {name: a, configuration: flux, settings: {defaults: {width: 64}}}")
    assert [model.name for model in resolved.models] == ["a"]
    assert resolved.origin("models.0.settings.defaults.width") == "server.yaml"


def test_one_model_of_a_list_may_be_spread_over_gpus(tmp_path: Path) -> None:
    for text in (
        "parallelism: {ulysses_size: 2}\n" + entries("{about: {}}"),
        entries("{parallelism: {ulysses_size: 2}}"),
    ):
        resolved = listed(tmp_path, text)
        assert resolved.settings.gpus_per_worker == 2
        assert resolved.models[0].settings.parallelism == resolved.settings.parallelism


def test_what_is_printed_is_the_same_list_with_the_origin_of_each_value(tmp_path: Path) -> None:
    resolved = listed(tmp_path, LIMITS__MAX_NUM_IMAGES="5", SHADOW__SHARE="0.1", SERVER__API_KEYS=KEY)
    text = printed(resolved)
    for line in (
        "  - name: flux  # server.yaml",
        "        path: /models/kontext  # server.yaml",
        "        dtype: float16  # kontext.yaml",
        f"        max_num_images: 5  # {OVERRIDE_PREFIX}LIMITS__MAX_NUM_IMAGES",
        f"        share: 0.1  # {OVERRIDE_PREFIX}SHADOW__SHARE",
        "    resident: always  # server.yaml",
        "  max_queue: 7  # server.yaml",
        "  switch_after_s: 20.0  # server.yaml",
    ):
        assert f"{line}\n" in text
    assert "sk-secret" not in text
    tree = yaml.safe_load(text)
    assert not tree.keys() & {"about", "model", "cache", "defaults", "shadow"}
    assert tree["limits"].keys() == set(SERVER_LIMITS)
    of_server = resolved.settings.model_dump(mode="json", exclude={*ENTRY_SECTIONS, "models", "server"})
    assert {name: tree[name] for name in of_server} == of_server
    for entry, name in zip(tree["models"], ("flux", "kontext"), strict=True):
        [model] = [model for model in resolved.models if model.name == name]
        settings = model.settings.model_dump(mode="json", include={*ENTRY_SECTIONS})
        settings["limits"] = {key: value for key, value in settings["limits"].items() if key not in SERVER_LIMITS}
        assert entry["settings"] == settings
        assert (entry["name"], entry["resident"], entry["default"]) == (name, model.resident, model.is_default)
