//! A place in the order of a team's sandboxes, as pages of them end and begin: `MICROSECONDS_ID`, when one was made and which.

use time::OffsetDateTime;

use crate::db::sandboxes::Sandbox;

/// The cursor of the page after that sandbox. The database has microseconds.
pub(crate) fn cursor_after(row: &Sandbox) -> String {
    format!("{}_{}", row.created_at.unix_timestamp_nanos() / 1000, row.id)
}

/// The place that a cursor stands for, if it stands for one.
pub(crate) fn read_cursor(cursor: &str) -> Option<(OffsetDateTime, String)> {
    let (at, id) = cursor.split_once('_')?;
    let at = OffsetDateTime::from_unix_timestamp_nanos(at.parse::<i128>().ok()?.checked_mul(1000)?).ok()?;
    let id = id.parse::<wrenn_base::SandboxId>().ok()?;
    Some((at, id.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_were_written_and_nothing_else_is() {
        let (at, id) = read_cursor("1793620800250000_k3v9x0q2m7b1c8za").unwrap();
        assert_eq!(
            (at.unix_timestamp(), at.microsecond(), &*id),
            (1_793_620_800, 250_000, "k3v9x0q2m7b1c8za")
        );
        let most = format!("{}_k3v9x0q2m7b1c8za", i128::MAX);
        for wrong in
            ["", "_", "1_", "x_k3v9x0q2m7b1c8za", "1_../../../../etc/p", "1_k3v9", "k3v9x0q2m7b1c8za", &most]
        {
            assert_eq!(read_cursor(wrong), None, "{wrong}");
        }
    }
}
