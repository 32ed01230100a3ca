//! The kernels of every level that this processor has, byte for byte against arithmetic by the
//! definition of the field and against reed-solomon-erasure.
//!
//! Strips lie at odd addresses within larger memory, and what lies around them must stay as it is.

use corebay_raid::kernels::{self, Codec, DATA_MAX, Level, PARITY_MAX};
use proptest::{prelude::*, sample::subsequence};
use reed_solomon_erasure::galois_8::ReedSolomon;

/// Strips of one length, with other memory around each.
#[derive(Clone, Debug)]
struct Strips {
    all: Vec<Vec<u8>>,
    bytes: usize,
}

/// Memory before a strip, so that none is aligned, and behind it.
const BEFORE: usize = 3;
const BEHIND: usize = 70;
const AROUND: u8 = 0xc5;

impl Strips {
    fn filled(count: usize, bytes: usize, byte: impl Fn(usize, usize) -> u8) -> Self {
        let strip = |index| {
            let mut memory = vec![AROUND; BEFORE + bytes + BEHIND];
            let strip = &mut memory[BEFORE..][..bytes];
            strip
                .iter_mut()
                .enumerate()
                .for_each(|(at, to)| *to = byte(index, at));
            memory
        };
        let all = (0..count).map(strip).collect();
        Self { all, bytes }
    }

    fn random(count: usize, bytes: usize, seed: u64) -> Self {
        Self::filled(count, bytes, |strip, at| {
            // SplitMix64.
            let mut z =
                (seed ^ (strip as u64) << 32 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ z >> 31) as u8
        })
    }

    /// To be overwritten: what was there before must not matter.
    fn unwritten(count: usize, bytes: usize) -> Self {
        Self::filled(count, bytes, |_, _| 0xee)
    }

    fn strip(&self, index: usize) -> &[u8] {
        &self.all[index][BEFORE..][..self.bytes]
    }

    fn strip_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.all[index][BEFORE..][..self.bytes]
    }

    fn slices(&self) -> Vec<&[u8]> {
        (0..self.all.len()).map(|index| self.strip(index)).collect()
    }

    /// What `write` does to the strips; it must not touch what lies around them.
    fn write(&mut self, write: impl FnOnce(&mut [&mut [u8]])) {
        let bytes = self.bytes;
        let strips = self
            .all
            .iter_mut()
            .map(|memory| &mut memory[BEFORE..][..bytes]);
        write(&mut strips.collect::<Vec<_>>());
        for memory in &self.all {
            let around = memory[..BEFORE].iter().chain(&memory[BEFORE + bytes..]);
            assert!(
                around.copied().all(|byte| byte == AROUND),
                "memory around a strip"
            );
        }
    }
}

/// The product by the definition: of polynomials over GF(2), modulo 0x11d.
fn multiply(a: u8, b: u8) -> u8 {
    let sum = (0..8)
        .filter(|bit| b >> bit & 1 == 1)
        .fold(0, |sum, bit| sum ^ u16::from(a) << bit);
    let reduced = (8..16).rev().fold(sum, |sum, bit| match sum >> bit & 1 {
        1 => sum ^ 0x11d << (bit - 8),
        _ => sum,
    });
    reduced as u8
}

/// Parity by the definition.
fn parity_of(codec: &Codec, data: &Strips) -> Strips {
    let rows: Vec<&[u8]> = codec.coefficients().chunks(codec.data()).collect();
    Strips::filled(codec.parity(), data.bytes, |row, at| {
        let products = rows[row].iter().enumerate();
        products.fold(0, |sum, (index, &c)| {
            sum ^ multiply(c, data.strip(index)[at])
        })
    })
}

fn encoded(codec: &Codec, data: &Strips) -> Strips {
    let mut parity = Strips::unwritten(codec.parity(), data.bytes);
    parity.write(|parity| codec.encode(&data.slices(), parity));
    parity
}

#[track_caller]
fn assert_same(found: &Strips, expected: &Strips, what: impl std::fmt::Display) {
    for index in 0..expected.all.len() {
        let (found, expected) = (found.strip(index), expected.strip(index));
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: strip {index} differs at this byte");
    }
}

/// Encodes, updates and restores at every level.
fn check(codec: &Codec, data: &Strips, expected: &Strips, lost: &[usize], changed: usize) {
    for level in Level::available() {
        let codec = codec.clone().with_level(level);
        let mut parity = encoded(&codec, data);
        assert_same(&parity, expected, format!("{level}, encode"));
        restore(&codec, data, expected, lost);

        let delta = Strips::random(1, data.bytes, 99);
        let mut after = data.clone();
        let changes = after.strip_mut(changed).iter_mut().zip(delta.strip(0));
        changes.for_each(|(byte, change)| *byte ^= change);
        parity.write(|parity| codec.update(changed, delta.strip(0), parity));
        assert_same(
            &parity,
            &parity_of(&codec, &after),
            format!("{level}, update"),
        );
    }
}

/// All lost members in one go, and each by itself.
fn restore(codec: &Codec, data: &Strips, parity: &Strips, lost: &[usize]) {
    let member = |member: usize| match member.checked_sub(codec.data()) {
        None => data.strip(member),
        Some(index) => parity.strip(index),
    };
    let plan = codec.plan(lost).unwrap();
    assert_eq!(plan.lost(), lost);
    assert!(plan.sources().iter().all(|source| !lost.contains(source)));
    let sources: Vec<&[u8]> = plan
        .sources()
        .iter()
        .map(|&source| member(source))
        .collect();
    let mut restored = Strips::unwritten(lost.len(), data.bytes);
    restored.write(|restored| plan.reconstruct(&sources, restored));
    for (index, &lost_member) in lost.iter().enumerate() {
        assert!(
            restored.strip(index) == member(lost_member),
            "{lost:?}: {lost_member}"
        );
        let mut one = Strips::unwritten(1, data.bytes);
        one.write(|one| plan.reconstruct_one(index, &sources, one[0]));
        assert!(
            one.strip(0) == member(lost_member),
            "{lost:?}: {lost_member} alone"
        );
    }
}

/// Lengths around those of vectors and of loops, whole blocks, and any others.
fn lengths() -> impl Strategy<Value = usize> {
    let around = (
        prop::sample::select(vec![32_usize, 64, 128, 192, 256, 512]),
        0..4_usize,
    );
    prop_oneof![
        around.prop_map(|(bytes, more)| bytes + more - 2),
        0..700_usize,
        (1..6_usize).prop_map(|blocks| blocks * 512),
    ]
}

/// A geometry, some lost members and a data member.
fn geometries() -> impl Strategy<Value = (usize, usize, Vec<usize>, usize)> {
    (1..=DATA_MAX, 1..=PARITY_MAX).prop_flat_map(|(k, m)| {
        let lost = subsequence((0..k + m).collect::<Vec<_>>(), 0..=m).prop_shuffle();
        (Just(k), Just(m), lost, 0..k)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn reed_solomon_is_that_of_the_peer(
        (k, m, lost, changed) in geometries(), bytes in lengths(), seed: u64,
    ) {
        let data = Strips::random(k, bytes, seed);
        let codec = Codec::new(k, m).unwrap();
        let expected = match bytes {
            // The peer takes no empty strips.
            0 => parity_of(&codec, &data),
            _ => {
                let mut expected = Strips::unwritten(m, bytes);
                let peer = ReedSolomon::new(k, m).unwrap();
                expected.write(|parity| peer.encode_sep(&data.slices(), parity).unwrap());
                expected
            }
        };
        check(&codec, &data, &expected, &lost, changed);
        let again = Codec::from_matrix(k, m, codec.coefficients()).unwrap();
        assert_same(&encoded(&again, &data), &expected, "from the stored matrix");
    }

    #[test]
    fn raid_5_and_6_are_those_of_the_definition(
        (k, m, lost, changed) in geometries(), bytes in lengths(), seed: u64,
    ) {
        let data = Strips::random(k, bytes, seed);
        let codec = if m % 2 == 0 { Codec::pq(k) } else { Codec::xor(k) }.unwrap();
        let lost: Vec<usize> = lost.into_iter().filter(|&lost| lost < codec.members()).collect();
        let lost = &lost[..lost.len().min(codec.parity())];
        let expected = parity_of(&codec, &data);
        check(&codec, &data, &expected, lost, changed);

        let mut free = Strips::unwritten(2, bytes);
        free.write(|free| match free {
            [p, q] if codec.parity() == 2 => kernels::pq(&data.slices(), p, q),
            [p, ..] => kernels::xor(&data.slices(), p),
            [] => unreachable!(),
        });
        assert_same(&free, &expected, "the function by itself");
        // XORed once more, nothing is left.
        free.write(|free| kernels::xor_into(&data.slices(), free[0]));
        prop_assert!(free.strip(0).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn any_matrix_that_is_accepted_restores(
        (k, m, lost, changed) in geometries(),
        coefficients in prop::collection::vec(any::<u8>(), DATA_MAX * PARITY_MAX),
        bytes in lengths(),
        seed: u64,
    ) {
        // Small ones: a large matrix at random is hardly ever good.
        let (k, m) = (k.min(5), m.min(2));
        if let Ok(codec) = Codec::from_matrix(k, m, &coefficients[..k * m]) {
            let data = Strips::random(k, bytes, seed);
            let lost: Vec<usize> = lost.into_iter().filter(|&lost| lost < k + m).collect();
            let lost = &lost[..lost.len().min(m)];
            check(&codec, &data, &parity_of(&codec, &data), lost, changed.min(k - 1));
        }
    }
}

/// Small enough for an interpreter (Miri), which has instructions that the processor may lack.
#[test]
fn every_kernel_runs_whole_loops_single_vectors_and_a_rest() {
    let data = Strips::random(3, 8 * 64 + 64 + 32 + 5, 1);
    let mut codecs: Vec<Codec> = (1..=PARITY_MAX)
        .map(|m| Codec::new(3, m).unwrap())
        .collect();
    codecs.extend([Codec::xor(3).unwrap(), Codec::pq(3).unwrap()]);
    for codec in codecs {
        let lost: Vec<usize> = (0..codec.parity()).collect();
        check(&codec, &data, &parity_of(&codec, &data), &lost, 1);
    }
}

/// Long stripes are written past the caches where the parity is aligned.
#[test]
fn the_parity_of_long_stripes_is_that_of_short_ones() {
    let bytes = 128 << 10;
    let data = Strips::random(4, bytes, 3);
    let expected = Strips::filled(1, bytes, |_, at| {
        data.slices().iter().fold(0, |sum, strip| sum ^ strip[at])
    });
    let mut memory = vec![0xee; bytes + 64];
    let start = memory.as_ptr().align_offset(64);
    let parity = &mut memory[start..][..bytes];
    for level in Level::available() {
        let codec = Codec::xor(4).unwrap().with_level(level);
        parity.fill(0xee);
        codec.encode(&data.slices(), &mut [parity]);
        assert!(parity == expected.strip(0), "{level}");
        for index in 0..4 {
            codec.update(index, data.strip(index), &mut [parity]);
        }
        assert!(parity.iter().all(|byte| *byte == 0), "{level}, update");
    }
    kernels::xor(&data.slices(), parity);
    assert!(parity == expected.strip(0));
    kernels::xor_into(&data.slices(), parity);
    assert!(parity.iter().all(|byte| *byte == 0));
}

#[test]
fn every_loss_of_small_arrays_is_undone() {
    for (k, m) in (1..=6).flat_map(|k| (1..=PARITY_MAX).map(move |m| (k, m))) {
        let mut codecs = vec![Codec::new(k, m).unwrap()];
        match m {
            1 => codecs.push(Codec::xor(k).unwrap()),
            2 => codecs.push(Codec::pq(k).unwrap()),
            _ => {}
        }
        let data = Strips::random(k, 77, 7);
        for (codec, level) in codecs
            .iter()
            .flat_map(|codec| Level::available().map(move |level| (codec, level)))
        {
            let codec = codec.clone().with_level(level);
            let parity = parity_of(&codec, &data);
            for losses in 0..1_u32 << (k + m) {
                let lost: Vec<usize> = (0..k + m).filter(|i| losses >> i & 1 == 1).collect();
                match lost.len() > m {
                    true => assert!(codec.plan(&lost).is_err()),
                    false => restore(&codec, &data, &parity, &lost),
                }
            }
        }
    }
}

#[test]
fn the_matrix_is_that_of_the_peer_for_every_size() {
    for (k, m) in (1..=DATA_MAX).flat_map(|k| (1..=PARITY_MAX).map(move |m| (k, m))) {
        let peer = ReedSolomon::new(k, m).unwrap();
        let codec = Codec::new(k, m).unwrap();
        // Data member `i` has a one at byte `i` alone: the parity is the matrix.
        let data = Strips::filled(k, k, |strip, at| u8::from(strip == at));
        let mut parity = Strips::unwritten(m, k);
        parity.write(|parity| peer.encode_sep(&data.slices(), parity).unwrap());
        assert_eq!(parity.slices().concat(), codec.coefficients(), "{k}+{m}");
    }
}

#[test]
#[should_panic(expected = "strips of one length")]
fn strips_of_different_lengths_are_refused() {
    let codec = Codec::pq(2).unwrap();
    let (mut p, mut q) = ([0; 64], [0; 64]);
    codec.encode(&[&[0; 64], &[0; 63]], &mut [&mut p, &mut q]);
}

#[test]
#[should_panic(expected = "a source for each column")]
fn too_few_strips_are_refused() {
    let codec = Codec::new(3, 1).unwrap();
    codec.encode(&[&[0; 64], &[0; 64]], &mut [&mut [0; 64]]);
}
