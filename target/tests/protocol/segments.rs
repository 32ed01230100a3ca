//! However the stream is cut, and whatever digests and alignment were agreed, the same comes out.

use corebay_nvme::spec::{
    command::{admin, nvm},
    tcp::{DGST_DATA, DGST_HEADER, H2cData, IcReq},
};
use zerocopy::{IntoBytes, little_endian::U32};

use crate::harness::{
    host::{Host, pattern},
    wire::{Payload, Pdu, Pipe},
    world::{Plan, World},
};
use corebay_target::tcp::TcpOptions;

#[test]
fn any_cut_any_digest_any_alignment() {
    for cut in [1, 25, 73, usize::MAX] {
        for (dgst, hpda) in [(0, 0), (DGST_HEADER, 0), (DGST_DATA, 31), (3, 7)] {
            let world = World::new(Plan {
                tcp: TcpOptions {
                    h2c_data_bytes_max: 4096,
                    ..TcpOptions::default()
                },
                ..Plan::default()
            });
            let mut host = Host::new(&world, 1);
            host.cut = cut;
            host.request = IcReq::new(hpda, dgst, 3);
            let (mut association, mut queue) = host.with_queue(16);
            for (seed, bytes) in [(1, 4096), (2, 8192), (3, 16384), (4, 20480)] {
                let data = pattern(seed, bytes);
                queue.write(1, seed, 4096, &data).ok();
                let read = queue.read(1, seed, 4096, bytes / 4096).ok();
                assert!(read == data, "cut {cut}, digests {dgst}, HPDA {hpda}");
            }
            association
                .admin
                .command(admin::keep_alive(), Payload::None)
                .ok();
            let counters = &world.nodes[0].tcp.counters;
            assert_eq!(counters.fetched_bytes_copied.get(), 0);
            assert!(counters.in_capsule_bytes_copied.get() <= 4096 + 8192 + 2 * 1024);
            drop((association, queue));
            world.assert_deserted();
        }
    }
}

/// A host may leave a gap between header and data though nobody asked for alignment.
#[test]
fn data_behind_a_gap_land_in_their_buffer_too() {
    for cut in [1, 30, usize::MAX] {
        let world = World::with(vec![crate::harness::world::ram(
            corebay_core::units::BlockSize::B4096,
            64,
        )]);
        let mut host = Host::new(&world, 1);
        host.cut = cut;
        let (_association, mut queue) = host.with_queue(16);
        queue.answers_r2t = false;
        let data = pattern(5, 16 << 10);
        let cid = queue.submit(nvm::write(1, 0, 4, false), Payload::Asked(&data));
        let Some(Pdu::R2t(r2t)) = queue.pdu() else {
            panic!("no R2T came")
        };
        let mut pdu = H2cData::new(cid, r2t.ttag.get(), 0, data.len() as u32, true);
        pdu.common.pdo = 128;
        pdu.common.plen = U32::new(128 + data.len() as u32);
        let bytes = [pdu.as_bytes(), &[0xEE; 104], &data].concat();
        queue.pipe.send_all(&bytes);
        queue.complete(cid).ok();
        assert!(queue.read(1, 0, 4096, 4).ok() == data);
        assert_eq!(world.nodes[0].tcp.counters.fetched_bytes_copied.get(), 0);
    }
}

#[test]
fn data_with_a_wrong_digest_fail_their_command_alone() {
    for cut in [1, usize::MAX] {
        let world = World::new(Plan::default());
        let mut host = Host::new(&world, 1);
        host.cut = cut;
        host.request = IcReq::new(0, DGST_HEADER | DGST_DATA, 0);
        let (_association, mut queue) = host.with_queue(16);
        let old = pattern(1, 4096);
        queue.write(1, 0, 4096, &old).ok();
        // In the capsule.
        let (cid, mut bytes) =
            queue.capsule(nvm::write(1, 0, 1, false), Payload::Capsule(&[9; 4096]));
        *bytes.last_mut().unwrap() ^= 1;
        queue.pipe.send_all(&bytes);
        let failed = queue.complete(cid);
        assert_eq!(
            failed.status,
            corebay_nvme::spec::status::Status::TRANSIENT_TRANSPORT_ERROR
        );
        // By R2T.
        queue.answers_r2t = false;
        let data = pattern(2, 4096);
        let cid = queue.submit(nvm::write(1, 0, 1, false), Payload::Asked(&data));
        let Some(Pdu::R2t(r2t)) = queue.pdu() else {
            panic!("no R2T came")
        };
        let pdu = H2cData::new(cid, r2t.ttag.get(), 0, 4096, true);
        let mut bytes = queue.dress(pdu.as_bytes(), &data);
        bytes[100] ^= 1;
        queue.pipe.send_all(&bytes);
        let failed = queue.complete(cid);
        assert_eq!(
            failed.status,
            corebay_nvme::spec::status::Status::TRANSIENT_TRANSPORT_ERROR
        );
        assert!(
            queue.read(1, 0, 4096, 1).ok() == old,
            "nothing of it was written"
        );
        drop((queue, _association));
        world.assert_deserted();
    }
}
