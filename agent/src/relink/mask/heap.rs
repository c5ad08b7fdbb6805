//! Heap pages (tables, TOAST, materialised views): heapam_handler's `heap_mask`.

use super::{LP_NORMAL, PAGE, clear_u16, lines, mask_hole, u16_at};

/// Offsets in a tuple header (htup_details.h, `HeapTupleHeaderData`).
const CID: usize = 8;
const CTID_OFFSET_NUMBER: usize = 16;
const INFOMASK: usize = 20;
/// `SizeofHeapTupleHeader`.
const TUPLE_HEADER: usize = 23;

/// `HEAP_XACT_MASK`: everything about visibility; settable without a record while xmin is not frozen.
const XACT_MASK: u16 = 0xFFF0;
/// `HEAP_XMIN_FROZEN`.
const XMIN_FROZEN: u16 = 0x0300;
/// `HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID | HEAP_COMBOCID`. The last is not in `heap_mask`: replay never sets it
/// (htup_details.h, `HeapTupleHeaderSetCmax`), and COPY FREEZE followed by DELETE leaves it on a frozen tuple.
const XMAX_HINTS: u16 = 0x0C20;
/// `SpecTokenOffsetNumber`: the ctid holds the token of a speculative insertion, which is not logged.
const SPECULATIVE: u16 = 0xFFFE;

pub(super) fn mask(page: &mut [u8; PAGE]) {
    mask_hole(page);
    for line in lines(page) {
        let (start, end) = (line.offset, line.offset + line.length);
        if line.length == 0 || end > PAGE {
            continue;
        }
        if line.flags == LP_NORMAL && line.length >= TUPLE_HEADER {
            mask_tuple(page, start);
        }
        // Padding after a tuple, up to the next multiple of eight.
        let padded = end.next_multiple_of(8).min(PAGE);
        page[end..padded].fill(0);
    }
}

fn mask_tuple(page: &mut [u8; PAGE], start: usize) {
    let frozen = u16_at(page, start + INFOMASK) & XMIN_FROZEN == XMIN_FROZEN;
    clear_u16(page, start + INFOMASK, if frozen { XMAX_HINTS } else { XACT_MASK });
    // Replay sets the command id to the first one (heap_xlog_insert).
    page[start + CID..start + CID + 4].fill(0);
    if u16_at(page, start + CTID_OFFSET_NUMBER) == SPECULATIVE {
        page[start + 12..start + 18].fill(0);
    }
}
