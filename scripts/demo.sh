#!/usr/bin/env bash
# Installs genlab, trains a DCGAN on real digits, samples from it, evaluates it, and prints where the pictures are.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
set -x
genlab train model=dcgan experiment=dcgan_digits
genlab sample n=64
genlab evaluate
set +x
run="$(dirname "$(ls -t outputs/dcgan-digits/*/run.json | head -n 1)")"
echo
echo "real digits:       $run/reals.png"
echo "generated digits:  $(ls -t "$run"/samples/sample_*.png | head -n 1)"
echo "training curves:   tensorboard --logdir $run/tensorboard"
