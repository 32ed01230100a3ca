//! Owns the tests of single I/O commands, sent through nvme-cli and the block layer.

use anyhow::Result;

use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("read_write", |lab| on_both(lab, READ_WRITE)).peer(),
    Case::new("large_transfers", |lab| on_both(lab, LARGE)).peer(),
    Case::new("flush_and_fua", |lab| on_both(lab, FLUSH_AND_FUA)).peer(),
    Case::new("write_zeroes", |lab| on_both(lab, WRITE_ZEROES)).peer(),
    Case::new("dsm", |lab| on_both(lab, DSM)),
    Case::new("discard", |lab| on_both(lab, DISCARD)),
    Case::new("compare", |lab| on_both(lab, COMPARE)),
    Case::new("verify", |lab| on_both(lab, VERIFY)),
    Case::new("write_uncorrectable", |lab| {
        on_both(lab, WRITE_UNCORRECTABLE)
    })
    .io_errors(),
    Case::new("copy", |lab| on_both(lab, COPY)),
    Case::new("out_of_range", |lab| on_both(lab, OUT_OF_RANGE)),
    Case::new("invalid_opcode", |lab| on_both(lab, INVALID_OPCODE)).peer(),
];

fn on_both(lab: &mut Lab, script: &str) -> Result<()> {
    let controller = lab.connect("")?;
    for namespace in lab.endpoint().namespaces.clone() {
        let device = lab.host().device(&controller, namespace.nsid)?;
        lab.device_script(&device, namespace.nsid, script)?;
    }
    Ok(())
}

/// In a capsule, by R2T, one block and many, at both ends of the namespace.
const READ_WRITE: &str = "
    random 64 a; random 64 b
    nvme write $D -s 16 -c 63 -z $((64 * B)) -d a
    nvme read $D -s 16 -c 63 -z $((64 * B)) -d back && cmp back a
    same 16 64 a
    part b 0 1 one; nvme write $D -s 20 -c 0 -z $B -d one
    same 20 1 one
    part a 0 4 head; same 16 4 head
    part a 5 59 rest; same 21 59 rest
    put $((N - 64)) 64 b; same $((N - 64)) 64 b
    put 0 64 b; same 0 64 b; same 64 16 <(tail -c +$((48 * B + 1)) a)
";

/// Larger than MDTS: the host splits, and every part lands where it belongs.
const LARGE: &str = "
    random $((4194304 / B)) a
    dd if=a of=$D bs=4M oflag=direct conv=notrunc status=none
    dd if=$D of=back bs=4M count=1 iflag=direct status=none && cmp a back
    dd if=$D of=back bs=$((65536 + B)) count=60 iflag=direct status=none
    cmp -n $((60 * (65536 + B))) a back
";

const FLUSH_AND_FUA: &str = "
    random 8 a
    nvme write $D -s 8 -c 7 -z $((8 * B)) -d a -f
    nvme flush $D
    nvme read $D -s 8 -c 7 -z $((8 * B)) -d back -f && cmp back a
    dd if=a of=$D bs=$B seek=100 oflag=direct,dsync conv=notrunc status=none
    same 100 8 a
";

const WRITE_ZEROES: &str = "
    random 64 a; put 0 64 a
    nvme write-zeroes $D -s 16 -c 15
    zeros 16 16
    part a 0 16 head; same 0 16 head
    part a 32 32 rest; same 32 32 rest
    put 0 64 a; nvme write-zeroes $D -s 8 -c 7 -d
    zeros 8 8
    random $((2097152 / B)) c; put 1024 $((2097152 / B)) c
    blkdiscard --zeroout -o $((1024 * B)) -l 1048576 $D
    zeros 1024 $((1048576 / B))
    part c $((1048576 / B)) 8 after; same $((1024 + 1048576 / B)) 8 after
";

/// Two ranges in one command; deallocated blocks read as zeros, their neighbours stay.
const DSM: &str = "
    random 128 a; put 0 128 a
    nvme dsm $D -d -b 8,16 -s 16,64
    zeros 16 8; zeros 64 16
    part a 0 16 p; same 0 16 p
    part a 24 40 p; same 24 40 p
    part a 80 48 p; same 80 48 p
    random 8 b; put 16 8 b; same 16 8 b; zeros 64 16
";

const DISCARD: &str = "
    [ $(cat /sys/block/${D#/dev/}/queue/discard_max_bytes) -gt 0 ] || fail 'no discard offered'
    random $((2097152 / B)) a; put 0 $((2097152 / B)) a
    blkdiscard -o 1048576 -l 1048576 $D
    zeros $((1048576 / B)) $((1048576 / B))
    part a 0 $((1048576 / B)) p; same 0 $((1048576 / B)) p
    blkdiscard $D
    zeros 0 $((2097152 / B))
";

const COMPARE: &str = "
    random 16 a; put 32 16 a
    nvme compare $D -s 32 -c 15 -z $((16 * B)) -d a
    nvme compare $D -s 32 -c 0 -z $B -d a
    cp a b; printf x | dd of=b bs=1 seek=$((16 * B - 1)) conv=notrunc status=none
    cmp -s a b && printf y | dd of=b bs=1 seek=$((16 * B - 1)) conv=notrunc status=none
    status 0x285 nvme compare $D -s 32 -c 15 -z $((16 * B)) -d b
    same 32 16 a
";

const VERIFY: &str = "
    random 16 a; put 0 16 a
    nvme verify $D -s 0 -c 15
    status 0x80 nvme verify $D -s $((N - 1)) -c 1
";

/// Such blocks cannot be read until they are written again.
const WRITE_UNCORRECTABLE: &str = "
    random 32 a; put 0 32 a
    nvme write-uncor $D -s 8 -c 7
    status 0x281 nvme read $D -s 8 -c 0 -z $B -d back
    status 0x281 nvme read $D -s 0 -c 31 -z $((32 * B)) -d back
    status 0x281 nvme verify $D -s 15 -c 0
    part a 0 8 p; same 0 8 p
    part a 16 16 p; same 16 16 p
    random 8 b; put 8 8 b; same 8 8 b
";

const COPY: &str = "
    random 64 a; put 0 64 a
    nvme copy $D --sdlba=1000 --slbs=0 --blocks=15
    part a 0 16 p; same 1000 16 p
    nvme copy $D --sdlba=2000 --slbs=32,0,48 --blocks=7,3,15
    part a 32 8 p; same 2000 8 p
    part a 0 4 p; same 2008 4 p
    part a 48 16 p; same 2012 16 p
    same 0 64 a
    status 0x80 nvme copy $D --sdlba=$((N - 4)) --slbs=0 --blocks=7
";

const OUT_OF_RANGE: &str = "
    random 8 a; put $((N - 8)) 8 a
    status 0x80 nvme read $D -s $N -c 0 -z $B -d back
    status 0x80 nvme read $D -s $((N - 4)) -c 7 -z $((8 * B)) -d back
    status 0x80 nvme write $D -s $((N - 4)) -c 7 -z $((8 * B)) -d a
    status 0x80 nvme read $D -s 0xffffffffffffffff -c 0 -z $B -d back
    same $((N - 8)) 8 a
";

const INVALID_OPCODE: &str = "
    status 0x01 nvme io-passthru $D --opcode=0x7e -n $NSID
    status 0x01 nvme admin-passthru ${D%n*} --opcode=0xbf
    random 8 a; put 0 8 a; same 0 8 a
";
