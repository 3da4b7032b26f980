# SPDX-License-Identifier: Apache-2.0
"""Recipes as llm-compressor writes them, what it takes them to mean, and which group compressed-tensors finds for every
linear of a model of twelve layers.
Needs: llmcompressor 0.14, compressed-tensors 0.19, transformers, torch. From this folder: python3 make.py"""

import json
import os
import warnings

import compressed_tensors
import llmcompressor
import torch
import transformers
import yaml
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                             apply_quantization_config)
from llmcompressor.core import State
from llmcompressor.modifiers.awq import AWQModifier as OlderAWQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.recipe import Recipe

warnings.simplefilter("ignore")
VERSIONS = {"llmcompressor": llmcompressor.__version__, "compressed_tensors": compressed_tensors.__version__,
            "transformers": transformers.__version__}


def model():
    config = transformers.MistralConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=12, num_attention_heads=2,
                                        num_key_value_heads=1, head_dim=16, vocab_size=32)
    return transformers.MistralForCausalLM(config)


# --- recipes ---

def args(bits, **more):
    return QuantizationArgs(num_bits=bits, **more)


SHARED = ["re:.*layers\\.(0|11)\\.mlp\\.down_proj"]
WRITTEN = {
    "older_api": lambda: OlderAWQModifier(scheme="W4A16_ASYM", targets=["Linear"], ignore=["lm_head"],
                                          duo_scaling="both", offload_device=torch.device("cpu")),
    "groups": lambda: [
        AWQModifier(n_grid=10),
        QuantizationModifier(
            config_groups={
                "group_0": QuantizationScheme(targets=["Linear"],
                                              weights=args(4, symmetric=False, strategy="group", group_size=128)),
                "group_1": QuantizationScheme(targets=SHARED, weights=args(8, group_size=-1))},
            ignore=["lm_head", "re:.*layers\\.5\\..*"], bypass_divisibility_checks=True)],
    "preset_targets": lambda: [
        AWQModifier(duo_scaling=False),
        QuantizationModifier(scheme={"w4a16": ["Linear"], "W8A16": SHARED}, ignore=["lm_head"])],
    "round_to_nearest": lambda: QuantizationModifier(scheme="W3A16", targets="Linear", ignore=["lm_head"],
                                                     weight_observer="mse"),
}

# As older versions had it; 0.14 takes these arguments in Python, and refuses them in YAML.
OLDER = """quant_stage:
  quant_modifiers:
    AWQModifier:
      config_groups:
        group_0:
          targets: &linears ["Linear"]
          input_activations: null
          output_activations: null
          weights: {num_bits: 4, type: int, symmetric: yes, strategy: group, group_size: 64}
      targets: *linears
      ignore: ["lm_head", "re:.*o_proj"]
      mappings:
        - smooth_layer: re:.*input_layernorm
          balance_layers: ['re:.*q_proj', 're:.*k_proj', 're:.*v_proj']
        - {smooth_layer: 're:.*v_proj', balance_layers: ['re:.*o_proj']}
        - {smooth_layer: 're:.*post_attention_layernorm', balance_layers: ['re:.*gate_proj', 're:.*up_proj']}
        - {smooth_layer: 're:.*up_proj', balance_layers: ['re:.*down_proj']}
      duo_scaling: false
"""


def meaning(modifiers):
    awq = [m for m in modifiers if isinstance(m, AWQModifier)]
    quantizer = [m for m in modifiers if isinstance(m, QuantizationModifier)][0]
    groups = [{"targets": scheme.targets, "bits": scheme.weights.num_bits, "symmetric": scheme.weights.symmetric,
               "group_size": scheme.weights.group_size if scheme.weights.strategy == "group" else -1}
              for scheme in quantizer.resolved_config.config_groups.values()]
    duo = awq[0].duo_scaling if awq else True
    return {"awq": bool(awq), "duo_scaling": duo if duo == "both" else str(duo).lower(),
            "n_grid": awq[0].n_grid if awq else 20, "groups": groups, "ignore": quantizer.ignore}


def write(file, recipe):
    with open(file, "w", encoding="utf-8") as out:
        out.write(recipe.yaml().replace(os.path.dirname(llmcompressor.__file__), "llmcompressor"))
    return meaning(recipe.modifiers)


def recipes():
    found = {}
    for name, made in WRITTEN.items():
        recipe = Recipe.create_instance(made())
        if name == "older_api":  # as Recipe.yaml() has it before a run
            found["before_a_run.yaml"] = write("before_a_run.yaml", Recipe.create_instance(
                [AWQModifier(duo_scaling="both"), QuantizationModifier(scheme="W4A16_ASYM", ignore=["lm_head"])]))
        for modifier in recipe.modifiers:
            if isinstance(modifier, AWQModifier):  # as a run saves it: mappings are there, and the device is settled
                modifier.on_initialize(State(model=model()))
        found[name + ".yaml"] = write(name + ".yaml", recipe)
    with open("older.yaml", "w", encoding="utf-8") as out:
        out.write(OLDER)
    arguments = yaml.safe_load(OLDER)["quant_stage"]["quant_modifiers"]["AWQModifier"]
    found["older.yaml"] = meaning(OlderAWQModifier(**arguments))
    return found


# --- matching ---

# (targets of the groups, which have 2, 3, 4 … bits; ignore)
CASES = [
    ([["Linear"]], ["lm_head"]),
    ([["Linear"]], []),
    ([["Module"]], ["lm_head"]),
    ([["Embedding"]], []),
    ([["MistralMLP", "linear", "torch.nn.Linear", "nn.Linear", "Lin"]], []),
    ([["Linear"]], ["Linear"]),
    ([["Linear"]], ["Module"]),
    ([["Linear"]], ["MistralMLP", "mlp", "model.layers.0.mlp", "down_proj"]),
    ([["q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj"]], []),
    ([["re:layers", "re:self_attn"]], []),
    ([["re:model.layers.1"]], []),
    ([["re:model\\.layers\\.1\\."]], []),
    ([["re:.*layers.1.*q_proj"]], []),
    ([["re:.*_proj$"]], ["re:.*o_proj$"]),
    ([["re:.*_pro$"]], []),
    ([["re:.*(q|k|v)_proj"], ["re:.*mlp"]], ["re:.*layers\\.[3-5]\\."]),
    ([["Linear"], ["re:.*down_proj"]], ["lm_head"]),
    ([["re:.*down_proj"], ["Linear"]], ["lm_head"]),
    ([["re:.*mlp.*"], ["re:.*down_proj"]], []),
    ([["re:.*down_proj"], ["re:.*mlp.*"]], []),
    ([["re:.*"], ["re:.*down_proj"]], ["model.embed_tokens"]),
    ([["re:.*"], ["re:.*down_proj"]], []),
    ([["re:.*up_proj"], ["model.layers.2.mlp.up_proj"], ["Linear"]], ["lm_head"]),
    ([["model.layers.2.mlp.up_proj"], ["re:.*up_proj"], ["Module"], ["Linear"]], ["lm_head"]),
    ([["re:.*v_proj", "Linear"], ["re:.*v_proj"]], ["lm_head"]),
    ([["Linear"], ["Linear"]], ["lm_head"]),
    ([["re:model.layers.0.*|model.layers.1\\..*"]], []),
    ([["re:x|model"]], []),
    ([["re:(?i).*MLP.*UP"]], []),
    ([["re:(?!.*o_proj).*self_attn.*"]], []),
    ([["re:.*\\d{2}\\..*"], ["re:.*\\D\\d\\..*k_proj"]], []),
    ([["re:"], ["re:$"]], ["model.embed_tokens", "lm_head"]),
    ([["re:^model"], ["re:\\Amodel\\.layers\\.4\\."]], ["model.embed_tokens"]),
    ([["re:(?P<layer>model\\.layers\\.)7"]], []),
    ([["re:.*[.]self_attn[.]\\w+"]], ["re:.*(?<=q)_proj"]),
    ([["re:model.layers.8.mlp.gate_proj\\Z", "re:model.layers.9.mlp.gate_pro\\Z"]], []),
    ([["re:.*self_attn.*"], ["re:.*Self_attn.*", "re:.*mlp.*"], ["Linear"]], ["lm_head", "re:lm"]),
]


def weighted(of):
    return [(n, m) for n, m in of.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]


def matching():
    cases = []
    for targets, ignore in CASES:
        fresh = model()
        groups = {f"group_{i}": QuantizationScheme(targets=t, weights=args(i + 2, strategy="group", group_size=32))
                  for i, t in enumerate(targets)}
        apply_quantization_config(fresh, QuantizationConfig(config_groups=groups, ignore=ignore), show_progress=False)
        schemes = [getattr(module, "quantization_scheme", None) for _, module in weighted(fresh)]
        bits = "".join(str(scheme.weights.num_bits) if scheme else "-" for scheme in schemes)
        cases.append({"targets": targets, "ignore": ignore, "bits": bits})
    return {"modules": [name for name, _ in weighted(model())], "cases": cases}


def save(file, content):
    with open(file, "w", encoding="utf-8") as out:
        json.dump({"versions": VERSIONS, **content}, out, separators=(",", ":"))
        out.write("\n")


if __name__ == "__main__":
    save("recipes.json", {"recipes": recipes()})
    save("matching.json", matching())
