//! Making parity and restoring what is lost take nothing from the heap: counted.

use corebay_conformance::counting::taken;
use corebay_raid::kernels::{self, Codec, Level};

#[test]
fn a_codec_and_a_plan_allocate_only_while_they_are_made() {
    let (a, b, c, d) = ([1_u8; 777], [2_u8; 777], [3_u8; 777], [4_u8; 777]);
    let (mut p, mut q) = ([0_u8; 777], [0_u8; 777]);
    let before_codecs = taken();
    for codec in [Codec::new(4, 2).unwrap(), Codec::pq(4).unwrap()] {
        assert!(taken() > before_codecs, "the counter counts");
        for level in Level::available() {
            let codec = codec.clone().with_level(level);
            let plan = codec.plan(&[1, 3]).unwrap();
            let before = taken();
            codec.encode(&[&a, &b, &c, &d], &mut [&mut p, &mut q]);
            codec.update(2, &a, &mut [&mut p, &mut q]);
            let (mut second, mut fourth) = ([0; 777], [0; 777]);
            plan.reconstruct(&[&a, &c, &p, &q], &mut [&mut second, &mut fourth]);
            plan.reconstruct_one(1, &[&a, &c, &p, &q], &mut fourth);
            assert_eq!(taken(), before, "{level}");
        }
    }
    let before = taken();
    kernels::xor(&[&a, &b, &c], &mut p);
    kernels::xor_into(&[&d], &mut p);
    kernels::pq(&[&a, &b], &mut p, &mut q);
    assert_eq!(taken(), before);
}
