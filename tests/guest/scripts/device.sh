# Helpers for scripts about one block device: $D is its path, $NSID its namespace, $B its logical
# block in bytes and $N the number of blocks. Anything unexpected ends the script with a message.
set -e -o pipefail
mkdir "/tmp/device.$$"; cd "/tmp/device.$$"; trap 'rm -rf "/tmp/device.$$"' EXIT
fail() { echo "$*" >&2; exit 1; }

# random BLOCKS FILE: makes a file of random content.
random() { head -c $(($1 * B)) /dev/urandom > "$2"; }
# chunks BLOCKS: $S bytes times $C, as few operations as 64 KiB allow.
chunks() {
  S=$(($1 * B)) C=1
  if ((S > 65536 && S % 65536 == 0)); then C=$((S / 65536)) S=65536
  elif ((S > 65536)); then C=$1 S=$B; fi
}
# put LBA BLOCKS FILE: writes the file's content, directly.
put() {
  chunks "$2"
  dd if="$3" of="$D" bs="$S" count="$C" seek=$(($1 * B)) oflag=direct,seek_bytes conv=notrunc status=none
}
# get LBA BLOCKS FILE: reads into the file, directly.
get() {
  chunks "$2"
  dd if="$D" of="$3" bs="$S" count="$C" skip=$(($1 * B)) iflag=direct,skip_bytes status=none
}
# same LBA BLOCKS FILE: the blocks hold the file's content.
same() {
  get "$1" "$2" read.back
  cmp -n $(($2 * B)) read.back "$3" || fail "blocks $1..$(($1 + $2 - 1)) differ from $3"
}
# zeros LBA BLOCKS: the blocks read as zeros.
zeros() {
  get "$1" "$2" read.back
  cmp -n $(($2 * B)) read.back /dev/zero || fail "blocks $1..$(($1 + $2 - 1)) are not zeros"
}
# part FILE FROM BLOCKS INTO: cuts blocks out of a file.
part() { dd if="$1" of="$4" bs="$B" skip="$2" count="$3" status=none; }
# status CODE COMMAND...: the command must fail with this NVMe status (type and code, no DNR).
status() {
  local want=$1 said code
  shift
  if said=$("$@" 2>&1); then fail "succeeded and should not: $*: $said"; fi
  code=$(grep -o '(0x[0-9a-f]*)' <<<"$said" | tail -n 1 | tr -d '()' || true)
  [ -n "$code" ] || fail "no NVMe status from: $*: $said"
  (((code & 0x7ff) == want)) || fail "NVMe status $code instead of $want from: $*: $said"
}
# equal WHAT IS MUST
equal() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }
