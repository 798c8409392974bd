#!/usr/bin/env bash
# Puts the four idx files of Fashion-MNIST (Debian's package dataset-fashion-mnist, MIT) into a folder.
set -euo pipefail
target=${1:?usage: fetch_fashion_mnist.sh FOLDER}
if [ -f "$target/train-images-idx3-ubyte.gz" ]; then echo "$target is there already"; exit 0; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && { apt-get download dataset-fashion-mnist 2>/dev/null || { apt-get update -qq && apt-get download dataset-fashion-mnist; }; })
dpkg-deb --extract "$scratch"/*.deb "$scratch/unpacked"
mkdir -p "$target"
find "$scratch/unpacked" -name '*ubyte.gz' -exec cp {} "$target/" \;
ls -l "$target"
