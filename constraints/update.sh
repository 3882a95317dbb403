#!/bin/sh
# Resolve every constraints file anew: constraints/update.sh (needs uv: the `dev` extra).
# Then run `make test` on each Python before committing the result.
set -eu
cd "$(dirname "$0")/.."

# lock NAME TARGET EXTRAS STATE: write constraints/NAME-py3XX.txt for each Python.
lock() {
    for python in 3.11 3.12 3.13; do
        file=constraints/$1-py$(echo $python | tr -d .).txt
        {
            echo "# $1, Python $python: $4."
            echo "# Written by constraints/update.sh."
            # Wheels only, but for promise (tensorflow-datasets needs it), which has none.
            echo "mmx[$3] @ ." | uv pip compile - --quiet --upgrade \
                --python-version $python --python-platform "$2" \
                --only-binary :all: --no-binary promise --no-binary mmx \
                --no-emit-package mmx --no-header --no-annotate
        } > "$file.new"
        mv "$file.new" "$file"
        echo "$file"
    done
}

untested="resolved for this platform, not run on it"
lock linux-x86_64 x86_64-manylinux_2_31 demo,test,dev "installed and tested"
lock linux-x86_64-cuda x86_64-manylinux_2_31 demo,test,dev,cuda "$untested"
lock linux-x86_64-tpu x86_64-manylinux_2_31 demo,test,dev,tpu,gcs "$untested"
lock macos-arm64 aarch64-apple-darwin demo,test,dev "$untested"
