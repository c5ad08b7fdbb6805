//! Pages are built by hand, to the layouts of bufpage.h and htup_details.h.

use proptest::prelude::*;

use super::*;

const TUPLE: usize = 40;

/// A page with header and special space, position 0/1A2B3C.
fn page(special: usize) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[4..8].copy_from_slice(&0x001A_2B3C_u32.to_ne_bytes());
    put(&mut page, at::LOWER, HEADER as u16);
    put(&mut page, at::UPPER, (PAGE - special) as u16);
    put(&mut page, at::SPECIAL, (PAGE - special) as u16);
    put(&mut page, at::SIZE_VERSION, PAGE as u16 | 4);
    page
}

fn put(page: &mut [u8; PAGE], at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// Adds an item of `data`, from the end of the page downwards; returns where its bytes begin.
fn add_item(page: &mut [u8; PAGE], data: &[u8]) -> usize {
    let lower = usize::from(u16_at(page, at::LOWER));
    let start = (usize::from(u16_at(page, at::UPPER)) - data.len()) & !7;
    let word = start as u32 | LP_NORMAL << 15 | (data.len() as u32) << 17;
    page[lower..lower + 4].copy_from_slice(&word.to_ne_bytes());
    page[start..start + data.len()].copy_from_slice(data);
    put(page, at::LOWER, (lower + 4) as u16);
    put(page, at::UPPER, start as u16);
    start
}

fn heap_page(tuples: usize, fill: u8) -> ([u8; PAGE], Vec<usize>) {
    let mut page = page(0);
    let starts = (0..tuples).map(|_| add_item(&mut page, &[fill; TUPLE])).collect::<Vec<_>>();
    for start in &starts {
        put(&mut page, start + 20, 0x0902); // xmin committed, xmax invalid, has varwidth
        put(&mut page, start + 16, 1);
    }
    (page, starts)
}

fn masked(mut page: [u8; PAGE]) -> Vec<u8> {
    main_page(&mut page, false);
    page.to_vec()
}

proptest! {
    #[test]
    fn heap_hints_do_not_count(
        tuple in 0_usize..20, hints in any::<u16>(), flags in 0_u16..8, cid: u32, checksum: u16, prune: u32,
        hole in any::<u8>(),
    ) {
        let (before, starts) = heap_page(20, 7);
        let mut after = before;
        let infomask = u16_at(&after, starts[tuple] + 20);
        // Bits about visibility, short of freezing the tuple, which is logged.
        let changed = (infomask & 0x000F) | (hints & 0xFDF0);
        put(&mut after, starts[tuple] + 20, changed);
        after[starts[tuple] + 8..starts[tuple] + 12].copy_from_slice(&cid.to_ne_bytes());
        put(&mut after, at::CHECKSUM, checksum);
        put(&mut after, at::FLAGS, flags);
        after[20..24].copy_from_slice(&prune.to_ne_bytes());
        after[1000] = hole;
        prop_assert_eq!(masked(before), masked(after));
    }

    #[test]
    fn heap_data_counts(tuple in 0_usize..20, byte in 23_usize..TUPLE, flip in 1_u8..) {
        let (before, starts) = heap_page(20, 7);
        let mut after = before;
        after[starts[tuple] + byte] ^= flip;
        prop_assert_ne!(masked(before), masked(after));
    }

    #[test]
    fn position_counts_whatever_the_kind(special in prop::sample::select(vec![0_usize, 8, 16, 24]), end: u16, lsn: u64) {
        let mut before = page(special);
        if special > 0 {
            put(&mut before, PAGE - 2, end);
        }
        let mut after = before;
        after[..8].copy_from_slice(&lsn.to_ne_bytes());
        prop_assume!(before != after);
        prop_assert_ne!(masked(before), masked(after));
    }

    #[test]
    fn any_bytes_are_masked_without_panic(bytes in prop::collection::vec(any::<u8>(), PAGE), only: bool) {
        let mut page: [u8; PAGE] = bytes.try_into().unwrap();
        put(&mut page, at::SIZE_VERSION, PAGE as u16 | 4);
        for special in [PAGE, PAGE - 8, PAGE - 16, PAGE - 40] {
            let mut once = page;
            put(&mut once, at::SPECIAL, special as u16);
            main_page(&mut once, only);
            // The position survives whatever the rest says, unless the page was never used.
            prop_assert!(once[..8] == page[..8] || once == [0; PAGE]);
        }
    }

    #[test]
    fn btree_hints_do_not_count_and_keys_do(item in 0_usize..30, cycle in 0_u16..0xFF80, byte in 0_usize..16) {
        let mut before = page(16);
        let starts: Vec<usize> = (0..30).map(|_| add_item(&mut before, &[3; 16])).collect();
        put(&mut before, PAGE - 4, 1); // leaf
        let mut after = before;
        let word = u32_at(&after, HEADER + item * 4) | LP_FLAG_BITS; // LP_DEAD
        after[HEADER + item * 4..HEADER + item * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        put(&mut after, PAGE - 4, 1 | 1 << 5 | 1 << 6);
        put(&mut after, PAGE - 2, cycle);
        prop_assert_eq!(masked(before), masked(after));
        after[starts[item] + byte] ^= 1;
        prop_assert_ne!(masked(before), masked(after));
    }
}

#[test]
fn freezing_counts() {
    let (before, starts) = heap_page(3, 7);
    let mut after = before;
    put(&mut after, starts[1] + 20, 0x0B02);
    assert_ne!(masked(before), masked(after));
}

#[test]
fn an_untouched_empty_page_equals_a_zero_page_but_an_emptied_one_does_not() {
    let mut empty = page(0);
    assert_ne!(masked(empty), vec![0; PAGE], "its position says that it was written");
    empty[..8].fill(0);
    assert_eq!(masked(empty), vec![0; PAGE]);
    assert_eq!(masked([0; PAGE]), vec![0; PAGE]);
}

#[test]
fn a_sequence_is_told_from_gin_by_being_alone() {
    let mut before = page(8);
    let start = add_item(&mut before, &[1; 48]);
    before[PAGE - 8..PAGE - 4].copy_from_slice(&0x1717_u32.to_ne_bytes());
    let mut after = before;
    after[start + 30] = 9; // last_value
    let both = |only| {
        let (mut a, mut b) = (before, after);
        main_page(&mut a, only);
        main_page(&mut b, only);
        a == b
    };
    assert!(both(true), "the sequence's value runs ahead on a standby");
    assert!(!both(false), "the same bytes in a longer relation are a GIN page");
}

#[test]
fn visibility_bits_count() {
    let mut page = page(0);
    let mut other = page;
    other[5000] ^= 3;
    vm_page(&mut page);
    vm_page(&mut other);
    assert_ne!(page, other);
}

#[test]
fn brin_ranges_and_hash_tuples_count() {
    for (special, id) in [(8, 0xF092_u16), (16, 0xFF80), (16, 0xFF81), (8, 0xFF82), (8, 0xF093)] {
        let mut before = page(special);
        let start = add_item(&mut before, &[5; 24]);
        put(&mut before, PAGE - 2, id);
        put(&mut before, PAGE - 4, u16::from(special == 16) * 2);
        let mut after = before;
        after[start + 4] ^= 1;
        assert_ne!(masked(before), masked(after), "page id {id:#x}");
    }
}

#[test]
fn an_unknown_kind_is_compared_by_header_only() {
    let mut before = page(8);
    put(&mut before, PAGE - 2, 0xFF90);
    let mut after = before;
    after[6000] = 1;
    assert_eq!(masked(before), masked(after));
}

#[test]
fn deleted_gin_pages_and_spgist_caches_do_not_count() {
    let mut before = page(8);
    add_item(&mut before, &[5; 24]);
    let mut after = page(8);
    put(&mut before, PAGE - 2, 1 << 2 | 1 << 4); // GIN_DELETED | GIN_LIST
    put(&mut after, PAGE - 2, 1 << 2);
    assert_eq!(masked(before), masked(after));

    let mut before = page(8);
    put(&mut before, at::LOWER, 92);
    put(&mut before, PAGE - 8, 1);
    put(&mut before, PAGE - 2, 0xFF82);
    let mut after = before;
    after[HEADER + 8] = 99;
    assert_eq!(masked(before), masked(after), "the meta page's cache");
    put(&mut before, PAGE - 8, 0);
    put(&mut after, PAGE - 8, 0);
    assert_ne!(masked(before), masked(after), "any other page");
}
