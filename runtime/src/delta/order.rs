//! In which order the pages of a file are replaced, when what moves within it must be read before it is overwritten.
//!
//! Moves keep their order, so that at a boundary between two pages bytes cross in one direction only: if one section crossed to the right and another
//! to the left, they would have changed places. So where bytes cross a boundary to the right, the page behind it goes before the one in front of
//! it; everywhere else pages go upwards.

use super::file::Delta;

/// The pages that hold the data of the new file, in their order.
#[derive(Clone, Debug)]
pub(super) struct Order {
    page_bytes: usize,
    /// One beyond the last page.
    pages: u32,
    /// Pages that go downwards: from the first to before `next`.
    first: u32,
    next: u32,
    /// The first page of the next run.
    end: u32,
    /// Pages given.
    pub step: u32,
}

impl Order {
    pub fn of(delta: &Delta<'_>, page_bytes: usize) -> Self {
        let pages = delta.data_bytes().div_ceil(page_bytes.max(1)) as u32;
        Self { page_bytes, pages, first: 0, next: 0, end: 0, step: 0 }
    }

    /// The next page and its number in the order, from 1.
    pub fn next(&mut self, delta: &Delta<'_>) -> Option<(u32, u32)> {
        if self.next == self.first {
            if self.end >= self.pages {
                return None;
            }
            self.first = self.end;
            self.end += 1;
            while self.end < self.pages && crosses(delta, self.end as usize * self.page_bytes) {
                self.end += 1;
            }
            self.next = self.end;
        }
        self.next -= 1;
        self.step += 1;
        Some((self.step, self.next))
    }
}

/// Whether bytes of the old file before `boundary` are bytes of the new one behind it.
fn crosses(delta: &Delta<'_>, boundary: usize) -> bool {
    delta.moves().any(|row| {
        let Some(shift) = row.new.checked_sub(row.old) else { return false };
        row.old.max(boundary.saturating_sub(shift)) < boundary.min(row.old + row.bytes)
    })
}
