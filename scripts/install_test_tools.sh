#!/usr/bin/env bash
# What the tests need besides Python, on Debian and Ubuntu. Without it those tests are skipped, unless a variable
# SUPERDIFF_REQUIRE_... says that they must run.
set -euo pipefail

packages=(
  chromium                               # tests/clients/test_page.py: the page at / in a real browser
  postgresql                             # tests/postgres.py: a server of the tests' own
  krita python3-pyqt5 python3-sip xvfb   # tests/integrations/test_krita.py: the plug-in in the real program
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep --quiet 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update --quiet --quiet
"${as_root[@]}" apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
