#!/usr/bin/env bash
# Installs the programs that some tests drive, on Debian; needs root. Without them those tests skip and say so.
set -euo pipefail

packages=(
    krita python3-pyqt5 python3-sip xvfb  # tests/integrations/test_krita.py
)

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends "${packages[@]}"
