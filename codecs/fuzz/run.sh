#!/usr/bin/env bash
# Builds the mutation fuzzer with AddressSanitizer and UndefinedBehaviorSanitizer and runs it: run.sh [cases] [seed]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
kernels=(pick.c isa_*.c)
"${CC:-cc}" -std=c11 -O1 -g -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all \
    -Wall -Wextra -Wconversion "${kernels[@]}" fuzz/mutate.c -o "$folder/mutate"
"$folder/mutate" "${1:-100000}" "${2:-1}"
