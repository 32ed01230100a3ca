//! What was read of a member whose role has another disk by the time it is looked at.

use super::*;
use crate::{bed::Bed, geometry::Level};

/// Whoever chose whom to read from before the role's member failed, and comes to read once its role has a blank
/// disk, must not take what that holds.
#[test]
fn what_a_role_has_nothing_of_yet_is_not_taken_for_read() {
    for (level, roles) in [(Level::Raid5, 4), (Level::Mirrored, 2)] {
        let bed = Bed::new(level, roles);
        bed.fill(7);
        let geometry = bed.array.assembled().geometry();
        let strip = geometry.data() - 1;
        let piece = Band {
            stripe: 0,
            rows: 0..4096,
            strips: strip..strip + 1,
        };
        let core = &bed.array.core;
        let readers = (0..2).map(|_| match whom(core, &piece) {
            Whom::Ask(reader) => reader,
            _ => panic!("{level}: nobody to ask"),
        });
        let readers: Vec<Reader> = readers.collect();
        assert!(readers.iter().all(|r| r.counts(&core.shared, &piece)));
        let away = match geometry.parity() {
            0 => 1,
            _ => geometry.role_of(0, strip),
        };
        bed.replace(away);
        for reader in readers {
            let counts = reader.counts(&core.shared, &piece);
            assert_eq!(counts, reader.role != away, "{level}");
        }
        if geometry.parity() == 0 {
            continue;
        }
        let (array, pool) = (bed.array.clone(), bed.pool.clone());
        let more = bed.run(async move {
            let mut into = Vec::new();
            for _ in 0..=strip {
                into.push(pool.allocate(4096).await);
            }
            let strips: Vec<usize> = (0..=strip).collect();
            gather(&array.core, 0, &(0..4096), &strips, &into).await
        });
        assert_eq!(more, Set::default().with(strip), "{level}");
    }
}
