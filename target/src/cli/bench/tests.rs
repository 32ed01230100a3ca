//! Plans against namespaces of all sorts, and how units are divided.

use std::sync::{Arc, atomic::AtomicBool};

use clap::Parser;
use corebay_core::{
    reactor::{MachineClock, Reactor},
    units::CoreId,
};
use corebay_nvme::{
    fabrics::{Facts, HostIdentity, Namespace},
    spec::{
        identify::{IdentifyController, IdentifyNamespace},
        property::{Cap, Vs},
    },
};

use super::{
    args::Args,
    job::Job,
    plan::{Place, Plan},
    stats::Live,
};
use crate::cli::Failure;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Zeroes, as a controller that says nothing would send them.
fn zeroed<T: zerocopy::FromZeros>() -> Box<T> {
    Box::new(T::new_zeroed())
}

fn facts(mdts: u8) -> Facts {
    let mut identify = zeroed::<IdentifyController>();
    identify.mdts = mdts;
    Facts {
        cntlid: 1,
        cap: Cap::default(),
        vs: Vs::V2_1,
        identify,
        depth: 128,
    }
}

fn namespace(block_bytes: u32, blocks: u64) -> Namespace {
    Namespace {
        nsid: 1,
        block_bytes,
        metadata_bytes: 0,
        blocks,
        identifiers: Vec::new(),
        identify: zeroed::<IdentifyNamespace>(),
    }
}

fn plan_for(options: &str, namespace: &Namespace) -> Result<Plan, Failure> {
    let words = ["bench"].into_iter().chain(options.split_whitespace());
    let args = Line::try_parse_from(words).unwrap().args;
    let identity = HostIdentity {
        nqn: "nqn.2024-01.example.test:host".parse().unwrap(),
        id: [1; 16],
    };
    let place = Place {
        address: "192.0.2.1:4420".parse().unwrap(),
        nqn: "nqn.2024-01.example.test:disk".parse().unwrap(),
        identity,
    };
    // MDTS 5 is 128 KiB.
    Plan::new(args, place, &facts(5), namespace)
}

#[test]
fn a_plan_fits_its_namespace() {
    let disk = namespace(512, 1_000_001);
    let plan = plan_for("--block-size 3KiB", &disk).unwrap();
    assert_eq!((plan.unit_bytes, plan.unit_blocks), (3072, 6));
    assert_eq!(plan.units, 166_666);
    assert!(plan.slba(plan.units - 1) + 6 <= disk.blocks);
    let plan = plan_for("--span 1MiB --block-size 128KiB", &disk).unwrap();
    assert_eq!(plan.units, 8);
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let disk = namespace(4096, 1024);
    let mut metadata = namespace(512, 1024);
    metadata.metadata_bytes = 8;
    let cases = [
        (&disk, "--rw write", "--overwrite"),
        (&disk, "--rw mixed", "--overwrite"),
        (&disk, "--block-size 512B", "multiple of 4096"),
        (&disk, "--block-size 256KiB", "128 KiB"),
        (&disk, "--block-size 0B", "multiple of 4096"),
        (&disk, "--span 1GiB", "smaller one"),
        (&disk, "--span 2KiB", "larger --span"),
        (&disk, "--verify --depth 1024 --queues 2", "larger --span"),
        (&disk, "--cores 1000000", "choose from"),
        (&metadata, "", "without metadata"),
    ];
    for (namespace, options, help) in cases {
        let failure = plan_for(options, namespace).unwrap_err().to_string();
        assert!(failure.contains(help), "{options}: {failure}");
    }
}

#[test]
fn queues_and_slots_are_divided_without_gap_or_overlap() {
    let disk = namespace(4096, 1 << 20);
    let mut plan = plan_for("--queues 7 --depth 5", &disk).unwrap();
    plan.cpus = vec![0, 1, 2];
    assert_eq!([0, 1, 2].map(|core| plan.queues_of(core)), [3, 2, 2]);
    let plan = Arc::new(plan);
    let clock = MachineClock::new();
    let mut numbers = Vec::new();
    for core in 0..3 {
        let reactor = Reactor::new(CoreId(core), 1, clock.now());
        let live = Arc::new(Live::default());
        let interrupted = Arc::new(AtomicBool::new(false));
        let job = Job::new(plan.clone(), core, reactor, clock, live, interrupted);
        for slot in job.slots() {
            assert!(slot.queue < usize::from(plan.queues_of(core)));
            numbers.push(slot.number);
        }
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..35));
}
