//! The power fails after each change that an operation makes to the disk, in turn.

use corebay_core::rng::Rng;

use super::{Medium, Node, offline_check};

/// Whether `COREBAY_LONG` asks for all that can be tried, which takes minutes, and not for a sample.
pub fn is_long() -> bool {
    std::env::var_os("COREBAY_LONG").is_some()
}

/// Where the power fails: after every change in a long run, else after every `step` changes.
pub fn places(changes: u64, step: usize) -> impl Iterator<Item = u64> {
    let step = if is_long() { 1 } else { step };
    (0..=changes).step_by(step)
}

/// Runs `act` on the pool on `base` with the power failing at many places. Then the pool is checked and
/// `look` gets it, with whether `act` had ended before.
pub fn each_cut(base: &Medium, step: usize, act: impl Fn(&Node), look: impl Fn(&Node, bool)) {
    let run = |seed: u64, stop_after: Option<u64>| {
        let medium = base.copy(seed);
        let node = Node::import(&medium).expect("the pool at the start");
        let from = medium.changes();
        if let Some(changes) = stop_after {
            medium.stop_after(from + changes);
        }
        act(&node);
        let changes = medium.changes() - from;
        (medium, changes)
    };
    let (medium, changes) = run(0, None);
    assert!(changes > 0, "nothing is changed");
    look(&Node::import(&medium).expect("the pool at the end"), true);
    for cut in places(changes, step) {
        let (medium, _) = run(cut * 7 + 1, Some(cut));
        let ended = !medium.has_stopped();
        medium.cut_power();
        let mut rng = Rng::from_seed(cut);
        if rng.once_in(2) {
            medium.stop_after(medium.changes() + rng.below(120));
            drop(Node::import(&medium).unwrap_or_else(|error| panic!("cut {cut}: {error}")));
            medium.cut_power();
        }
        let report = offline_check(&medium);
        assert!(
            report.problems.is_empty(),
            "cut {cut} of {changes}: {:?}",
            report.problems
        );
        let node = Node::import(&medium).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        look(&node, ended);
        node.settle();
        node.checked();
    }
}
