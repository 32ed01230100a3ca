//! Owns who is compared, and the memory that all of them work on.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use corebay_raid::kernels::{Codec, Level, Plan};
use reed_solomon_erasure::galois_8::ReedSolomon;
use rustix::time::{ClockId, clock_gettime};

use super::{
    Work,
    isal::{self, Isal},
};

/// The name of ISA-L's candidate.
pub const ISAL: &str = "ISA-L";
/// The name of reed-solomon-erasure's candidate.
pub const PEER: &str = "r-s-e";

/// Strips begin where pages do, as buffers of disks do.
const PAGE_BYTES: usize = 4096;

/// All strips of a stripe; behind the members there is room for those that are restored.
pub struct Stripe {
    memory: Vec<u8>,
    start: usize,
    strip_bytes: usize,
}

impl Stripe {
    /// A stripe with data, and the parity that ours makes of them.
    pub fn new(codec: &Codec, strip_bytes: usize) -> Self {
        let strips = codec.members() + codec.parity();
        let memory = vec![0; strips * strip_bytes + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES);
        let mut stripe = Self {
            memory,
            start,
            strip_bytes,
        };
        let mut state = 1_u32;
        for byte in stripe.strips().take(codec.data()).flatten() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        let (data, mut parity) = stripe.split(Work::Encode, codec);
        codec.encode(&data, &mut parity);
        stripe
    }

    /// How many bytes of data there are.
    pub fn data_bytes(&self, codec: &Codec) -> usize {
        codec.data() * self.strip_bytes
    }

    fn strips(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory[self.start..].chunks_exact_mut(self.strip_bytes)
    }

    /// What is read and what is written. The first data members are those that are lost; they are
    /// restored into the room behind the members.
    fn split(&mut self, work: Work, codec: &Codec) -> (Vec<&[u8]>, Vec<&mut [u8]>) {
        let (first, end) = match work {
            Work::Encode => (0, codec.data()),
            Work::Decode => (codec.parity(), codec.members()),
        };
        let parity = codec.parity();
        let mut strips = self.strips().skip(first);
        let sources = strips
            .by_ref()
            .take(end - first)
            .map(|strip| &*strip)
            .collect();
        (sources, strips.take(parity).collect())
    }

    /// Where the outputs are, and what should be there.
    fn outcome(&mut self, work: Work, codec: &Codec) -> (Vec<&mut [u8]>, Vec<u8>) {
        let strips: Vec<&mut [u8]> = self.strips().collect();
        let expected = match work {
            Work::Encode => codec.data()..codec.members(),
            Work::Decode => 0..codec.parity(),
        };
        let expected = expected.flat_map(|index| strips[index].to_vec()).collect();
        let first = match work {
            Work::Encode => codec.data(),
            Work::Decode => codec.members(),
        };
        let outputs = strips.into_iter().skip(first).take(codec.parity());
        (outputs.collect(), expected)
    }
}

/// Does the work on one stripe.
type Run<'a> = Box<dyn FnMut(&[&[u8]], &mut [&mut [u8]]) + 'a>;

/// One of those that are compared.
pub struct Candidate<'a> {
    /// What it is called.
    pub name: String,
    how: How<'a>,
}

enum How<'a> {
    /// By what is read and what is written.
    Separate(Run<'a>),
    /// reed-solomon-erasure restores in place.
    InPlace(Box<ReedSolomon>),
}

/// All candidates for this work.
pub fn all<'a>(work: Work, codec: &Codec, isal: Option<&'a Isal>) -> Result<Vec<Candidate<'a>>> {
    let separate = |name: String, run: Run<'a>| Candidate {
        name,
        how: How::Separate(run),
    };
    let lost: Vec<usize> = (0..codec.parity()).collect();
    let mut all = Vec::new();
    for level in Level::available() {
        let codec = codec.clone().with_level(level);
        let run: Run<'_> = match work {
            Work::Encode => Box::new(move |data, parity| codec.encode(data, parity)),
            Work::Decode => {
                let plan = codec.plan(&lost)?;
                Box::new(move |sources, lost| plan.reconstruct(sources, lost))
            }
        };
        all.push(separate(level.to_string(), run));
    }
    if let Some(isal) = isal {
        let is_raid = codec.coefficients()[..codec.data()].iter().all(|c| *c == 1);
        // What has one parity member of ones is restored by XOR, too.
        let run: Run<'_> = if is_raid && (work == Work::Encode || codec.parity() == 1) {
            Box::new(|sources, outputs| isal.raid(sources, outputs).expect("aligned strips"))
        } else {
            let product = isal_product(work, codec, &codec.plan(&lost)?, isal)?;
            Box::new(move |sources, outputs| isal.run(&product, sources, outputs))
        };
        all.push(separate(ISAL.to_owned(), run));
    }
    let theirs = ReedSolomon::new(codec.data(), codec.parity())
        .map_err(|error| anyhow!("reed-solomon-erasure: {error}"))?;
    if Codec::new(codec.data(), codec.parity())?.coefficients() == codec.coefficients() {
        let how = match work {
            Work::Encode => How::Separate(Box::new(move |data, parity| {
                theirs
                    .encode_sep(data, parity)
                    .expect("strips of one length");
            })),
            Work::Decode => How::InPlace(Box::new(theirs)),
        };
        let name = PEER.to_owned();
        all.push(Candidate { name, how });
    }
    Ok(all)
}

/// ISA-L's tables for the work, by its own inversion.
fn isal_product(work: Work, codec: &Codec, plan: &Plan, isal: &Isal) -> Result<isal::Product> {
    let k = codec.data();
    if work == Work::Encode {
        return isal.product(k, codec.coefficients());
    }
    let mut matrix = vec![0; k * k];
    for (row, &member) in matrix.chunks_mut(k).zip(plan.sources()) {
        match member.checked_sub(k) {
            None => row[member] = 1,
            Some(parity) => row.copy_from_slice(&codec.coefficients()[parity * k..][..k]),
        }
    }
    let inverse = isal.inverse(&matrix, k)?;
    let rows = plan
        .lost()
        .iter()
        .flat_map(|&lost| inverse[lost * k..][..k].to_vec());
    isal.product(k, &rows.collect::<Vec<_>>())
}

impl Candidate<'_> {
    /// Fails where it does not make what ours makes.
    pub fn check(&mut self, work: Work, codec: &Codec, stripes: &mut [Stripe]) -> Result<()> {
        for stripe in stripes.iter_mut() {
            let (outputs, expected) = stripe.outcome(work, codec);
            if let How::Separate(run) = &mut self.how {
                outputs.into_iter().for_each(|output| output.fill(0xee));
                let (sources, mut outputs) = stripe.split(work, codec);
                run(&sources, &mut outputs);
                let (outputs, _) = stripe.outcome(work, codec);
                ensure!(
                    outputs.concat() == expected,
                    "{} made other bytes",
                    self.name
                );
            } else {
                stripe
                    .strips()
                    .take(codec.parity())
                    .for_each(|lost| lost.fill(0xee));
                self.time(1, work, codec, std::slice::from_mut(stripe));
                let found: Vec<u8> = stripe
                    .strips()
                    .take(codec.parity())
                    .flat_map(|s| s.to_vec())
                    .collect();
                ensure!(found == expected, "{} restored other bytes", self.name);
            }
        }
        Ok(())
    }

    /// How many passes over all stripes take about so long.
    pub fn passes_in(
        &mut self,
        wanted: Duration,
        work: Work,
        codec: &Codec,
        stripes: &mut [Stripe],
    ) -> u32 {
        let mut passes = 1;
        loop {
            let time = self.time(passes, work, codec, stripes);
            if time >= wanted / 2 {
                let more = wanted.as_secs_f64() / time.as_secs_f64();
                return (f64::from(passes) * more).ceil() as u32;
            }
            passes *= 2;
        }
    }

    /// The processor time of so many passes over all stripes.
    pub fn time(
        &mut self,
        passes: u32,
        work: Work,
        codec: &Codec,
        stripes: &mut [Stripe],
    ) -> Duration {
        match &mut self.how {
            How::Separate(run) => {
                let mut views: Vec<_> = stripes
                    .iter_mut()
                    .map(|stripe| stripe.split(work, codec))
                    .collect();
                let start = processor_time();
                for _ in 0..passes {
                    for (sources, outputs) in &mut views {
                        run(sources, outputs);
                    }
                }
                processor_time() - start
            }
            How::InPlace(theirs) => {
                let members = codec.members();
                let mut views: Vec<Vec<(&mut [u8], bool)>> = stripes
                    .iter_mut()
                    .map(|stripe| stripe.strips().take(members).map(|s| (s, true)).collect())
                    .collect();
                let start = processor_time();
                for _ in 0..passes {
                    for members in &mut views {
                        let lost = members.iter_mut().take(codec.parity());
                        lost.for_each(|(_, is_present)| *is_present = false);
                        theirs
                            .reconstruct_data(members)
                            .expect("few enough are lost");
                    }
                }
                processor_time() - start
            }
        }
    }
}

/// The time that this thread had the cpu.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
