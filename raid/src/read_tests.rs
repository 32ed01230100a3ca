//! What was read of a member whose role has another disk by the time it is looked at.

use super::*;
use crate::{bed::Bed, geometry::Level, state::RoleState};

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
            assert_eq!(counts, reader.role() != away, "{level}");
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

/// A read that failed, and is dealt with only once a spare has the role, says nothing about the spare.
#[test]
fn a_member_that_has_just_taken_a_role_is_not_failed_for_the_one_before() {
    for (level, roles) in [(Level::Raid5, 4), (Level::Mirrored, 2)] {
        let bed = Bed::new(level, roles);
        bed.fill(7);
        let piece = Band {
            stripe: 0,
            rows: 0..4096,
            strips: 0..1,
        };
        let Whom::Ask(reader) = whom(&bed.array.core, &piece) else {
            panic!("{level}: nobody to ask");
        };
        let role = reader.role();
        let failed_read = |failed| {
            let (array, pool) = (bed.array.clone(), bed.pool.clone());
            let piece = piece.clone();
            let into = bed.run(async move {
                let into = one(pool.allocate(4096).await);
                let failed = Some(failed);
                let job = Recover {
                    piece,
                    into: into.clone(),
                    failed,
                };
                recover(&array.core, &job).await.unwrap();
                into
            });
            assert!(into[0].bytes().iter().all(|byte| *byte == 7), "{level}");
            bed.array.assembled().state().roles[role].state
        };
        let former = reader.member;
        bed.replace(role);
        let state = failed_read(former);
        assert!(matches!(state, RoleState::Rebuilding { .. }), "{level}");
        let present = Reader::new(&bed.array.core.shared, role, None).member;
        assert_eq!(failed_read(present), RoleState::Failed, "{level}");
    }
}
