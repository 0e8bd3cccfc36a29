use super::*;

fn store_with_one() -> (tempfile::TempDir, SnapshotStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::new(dir.path().join("snapshots"));
    let staged = store.stage(1).unwrap();
    fs::write(staged.file("state"), b"registers").unwrap();
    let disk = File::create(staged.file("disk")).unwrap();
    disk.set_len(10 << 20).unwrap();
    disk.write_all_at(b"block", 5 << 20).unwrap();
    staged.commit(&["state", "disk"], "record".to_owned()).unwrap();
    (dir, store)
}

#[track_caller]
fn unusable<T>(result: Result<T, SnapshotError>, file: &str) {
    match result {
        Err(SnapshotError::Unusable { path, .. }) => assert!(path.ends_with(file), "{path:?}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{file} was accepted"),
    }
}

#[test]
fn a_committed_snapshot_reads_back() {
    let (_dir, store) = store_with_one();
    assert_eq!(store.latest().unwrap(), Some(1));
    let (snapshot, record) = store.open::<String>(1).unwrap();
    assert_eq!((snapshot.generation(), record.as_str()), (1, "record"));
    snapshot.verify("state").unwrap();
    snapshot.verify("disk").unwrap();
    assert_eq!(fs::read(snapshot.file("state")).unwrap(), b"registers");
}

#[test]
fn an_uncommitted_snapshot_never_counts() {
    let (_dir, store) = store_with_one();
    let staged = store.stage(2).unwrap();
    fs::write(staged.file("state"), b"half").unwrap();
    assert_eq!(store.latest().unwrap(), Some(1));
    drop(staged);
    assert!(store.open::<String>(2).is_err());
    assert_eq!(SnapshotStore::new("/nonexistent").latest().unwrap(), None);
}

#[test]
fn pruning_keeps_what_it_is_told_to() {
    let (_dir, store) = store_with_one();
    let staged = store.stage(2).unwrap();
    fs::write(staged.file("state"), b"x").unwrap();
    staged.commit(&["state"], 7).unwrap();
    store.prune(2).unwrap();
    assert!(store.open::<String>(1).is_err());
    assert_eq!(store.open::<i32>(2).unwrap().1, 7);
}

#[test]
fn a_truncated_or_altered_file_is_named() {
    let (_dir, store) = store_with_one();
    let (snapshot, _) = store.open::<String>(1).unwrap();
    let disk = File::options().write(true).open(snapshot.file("disk")).unwrap();
    disk.write_all_at(b"B", 5 << 20).unwrap();
    unusable(snapshot.verify("disk"), "disk");
    snapshot.verify("state").unwrap();
    disk.set_len(1).unwrap();
    unusable(store.open::<String>(1), "disk");
}

#[test]
fn every_altered_byte_of_the_index_is_found() {
    let (_dir, store) = store_with_one();
    let path = store.path(1).join(INDEX);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, bad).unwrap();
        assert!(store.open::<String>(1).is_err(), "byte {at}");
        fs::write(&path, &good[..at]).unwrap();
        unusable(store.open::<String>(1), INDEX);
    }
}

#[test]
fn a_hostile_or_newer_index_is_refused() {
    let (_dir, store) = store_with_one();
    let path = store.path(1).join(INDEX);
    let files = vec![FileEntry { name: "../../etc/passwd".into(), bytes: 1, crc32c: 0 }];
    write_index(&path, &Index { format: FORMAT, files, record: "" }).unwrap();
    unusable(store.open::<String>(1), INDEX);
    write_index(&path, &Index { format: FORMAT + 1, files: vec![], record: "" }).unwrap();
    assert!(matches!(store.open::<String>(1), Err(SnapshotError::Newer { format: 2, .. })));
}

#[test]
fn the_checksum_does_not_depend_on_holes() {
    let dir = tempfile::tempdir().unwrap();
    let mut content = vec![0u8; 3 * BLOCK + 100];
    content[BLOCK + 5] = 1;
    content[3 * BLOCK + 99] = 2;
    let (sparse, dense) = (dir.path().join("sparse"), dir.path().join("dense"));
    fs::write(&dense, &content).unwrap();
    let file = File::create_new(&sparse).unwrap();
    file.set_len(content.len() as u64).unwrap();
    file.write_all_at(&[1], BLOCK as u64 + 5).unwrap();
    file.write_all_at(&[2], 3 * BLOCK as u64 + 99).unwrap();
    let sum = |path: &Path| content_checksum(&File::open(path).unwrap()).unwrap();
    assert_eq!(sum(&sparse), sum(&dense));
    content[5] = 1;
    fs::write(&dense, &content).unwrap();
    assert_ne!(sum(&sparse), sum(&dense));
}
