#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_text.sh FILE...
# Fails on white space at the end of a line, on a last line without an end, and on a test whose name begins with a dash, which Catch takes for
# an option.
set -euo pipefail
bad=0
for file; do
  if grep -nE '[[:blank:]]+$' "$file" /dev/null; then bad=1; fi
  if grep -nE 'TEST_CASE\("-' "$file" /dev/null; then bad=1; fi
  if [[ -s $file && -n $(tail -c 1 "$file") ]]; then echo "$file: the last line does not end"; bad=1; fi
done
exit $bad
