//! Rebuilds and the stripes that earlier ones stepped over.

use super::*;
use crate::{bed::Bed, geometry::Level};

/// A stripe further on than the rebuild has come is made in its turn: whoever made it at once would wait, with
/// the stripe locked, for those before it, which nobody would begin with.
#[test]
fn a_lost_stripe_ahead_of_the_rebuild_does_not_stop_it() {
    let bed = Bed::new(Level::Raid5, 4);
    bed.fill(7);
    bed.replace(1);
    let shared = &bed.array.core.shared;
    assert!(shared.geometry.stripes() > 110 && shared.good(1) == 0);
    for stripe in 100..110 {
        assert!(shared.step_over(1, stripe));
    }
    let array = bed.array.clone();
    let rebuilt = bed.run(async move { array.rebuild(1, Pace::default()).await });
    assert_eq!(rebuilt, Ok(()));
    assert!(bed.array.assembled().lost_stripes().is_empty());
    assert!(bed.array.assembled().state().is_whole());
}
