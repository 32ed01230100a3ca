//! Raw and sparse images in and out of volumes.

use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::{Medium, Node};
use corebay_core::{disk::DiskError, units::BlockSize};
use corebay_lvol::{Piece, SparseFile, VolumeId};

fn node() -> Node {
    Node::create(&Medium::new(BlockSize::B4096, 64 << 20, false, 1))
}

fn import(node: &Node, id: VolumeId, mut image: SparseFile) {
    let mut pieces = Vec::new();
    while let Some(piece) = image.read().unwrap() {
        pieces.push(piece);
    }
    node.run(move |pool| async move {
        let writer = pool.write_image(id).unwrap();
        for piece in pieces {
            writer.write(&piece).await.unwrap();
        }
        writer.finish().await.unwrap();
    });
}

fn export(node: &Node, id: VolumeId, file: std::fs::File) {
    let (len, pieces) = node.run(move |pool| async move {
        let mut reader = pool.read_image(id).unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            pieces.push(piece);
        }
        assert_eq!(reader.position(), reader.len());
        (reader.len(), pieces)
    });
    let mut image = SparseFile::create(file, len).unwrap();
    for piece in &pieces {
        image.write(piece).unwrap();
    }
    image.finish().unwrap();
}

#[test]
fn a_sparse_image_goes_in_and_out_and_keeps_its_holes() {
    let node = node();
    let id = node.create_volume("v", 4096);
    let file = tempfile::tempfile().unwrap();
    file.set_len(16 << 20).unwrap();
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    file.write_all_at(&data, 1 << 20).unwrap();
    file.write_all_at(&[7; 4096], (16 << 20) - 4096).unwrap();
    // Zeroes that were written are no data either.
    file.write_all_at(&[0; 65536], 8 << 20).unwrap();
    import(
        &node,
        id,
        SparseFile::open(file.try_clone().unwrap()).unwrap(),
    );
    let record = node.pool.volume(id).unwrap();
    assert_eq!(record.mapped, 200_000u64.div_ceil(4096) + 1);
    node.checked();
    let out = tempfile::tempfile().unwrap();
    export(&node, id, out.try_clone().unwrap());
    let whole = |file: &std::fs::File| {
        let mut bytes = vec![0; 16 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(whole(&out) == whole(&file));
    assert_eq!(out.metadata().unwrap().len(), 16 << 20);
    let taken = out.metadata().unwrap().blocks() * 512;
    assert!(taken < 1 << 20, "{taken} bytes: holes were written");
}

#[test]
fn an_image_that_ends_within_a_block_is_filled_with_zeroes() {
    let node = node();
    let id = node.create_volume("v", 300);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[9; 5000], 0).unwrap();
    import(&node, id, SparseFile::open(file).unwrap());
    let out = tempfile::tempfile().unwrap();
    export(&node, id, out.try_clone().unwrap());
    let mut bytes = vec![1; 12288];
    out.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..5000] == [9; 5000] && bytes[5000..] == [0; 12288 - 5000]);
}

#[test]
fn zeroes_over_data_give_their_space_back_and_pieces_stay_within() {
    let node = node();
    let id = node.create_volume("v", 512);
    let piece = |at: u64, byte: u8, len: usize| Piece {
        at,
        bytes: vec![byte; len],
    };
    let write = |piece: Piece| {
        node.run(move |pool| async move { pool.write_image(id).unwrap().write(&piece).await })
    };
    write(piece(0, 5, 65536)).unwrap();
    write(piece(8192, 0, 8192)).unwrap();
    assert_eq!(node.pool.volume(id).unwrap().mapped, 14);
    assert_eq!(write(piece(100, 5, 4096)), Err(DiskError::OutOfRange));
    assert_eq!(
        write(piece(511 * 4096, 5, 8192)),
        Err(DiskError::OutOfRange)
    );
    let mut image = SparseFile::create(tempfile::tempfile().unwrap(), 8192).unwrap();
    assert!(image.write(&piece(4096, 1, 8192)).is_err());
    assert!(image.write(&piece(4096, 1, 4096)).is_ok());
    node.checked();
}
