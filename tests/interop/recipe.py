# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint's recipe.yaml with llm-compressor and prints the modifiers it found."""

import os
import sys

import llmcompressor
from llmcompressor.recipe import Recipe

path = os.path.join(sys.argv[1], "recipe.yaml")
modifiers = [type(modifier).__name__ for modifier in Recipe.create_instance(path).modifiers]
assert "QuantizationModifier" in modifiers, modifiers
print("RESULT", *modifiers, "llmcompressor", llmcompressor.__version__)
