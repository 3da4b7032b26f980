#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_size.sh FILE...
# Fails on files over 512 KiB: data belongs outside the repository.
set -euo pipefail
bad=0
for file; do
  if [[ $(stat -c %s "$file") -gt 524288 ]]; then echo "$file: over 512 KiB"; bad=1; fi
done
exit $bad
