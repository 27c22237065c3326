#!/usr/bin/env bash
# From nothing to a trained GAN: installs genlab, trains a DCGAN on real digits, samples and measures it.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
set -x
genlab train model=dcgan experiment=dcgan_digits
genlab sample n=64
genlab evaluate
set +x
run="$(dirname "$(ls -t outputs/dcgan-digits/*/run.json | head -n 1)")"
echo
echo "real digits:   $run/reals.png"
echo "drawn digits:  $(ls -t "$run"/samples/sample_*.png | head -n 1)"
echo "curves:        tensorboard --logdir $run/tensorboard"
