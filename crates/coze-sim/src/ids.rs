use fastrand::Rng;

/// Everything that looks random: ids, log ids, tokens, choices. Each has a generator of its own, all from one seed, so that
/// more requests of one kind do not change what another kind gets.
#[derive(Debug)]
pub(crate) struct Ids {
    last: u64,
    steps: Rng,
    logs: Rng,
    secrets: Rng,
    /// Chooses answers and chunk boundaries.
    pub(crate) choice: Rng,
}

impl Ids {
    pub(crate) fn new(seed: u64) -> Self {
        let mut seeds = Rng::with_seed(seed);
        let [mut steps, logs, secrets, choice] = [(); 4].map(|()| seeds.fork());
        Self { last: 7_600_000_000_000_000_000 + steps.u64(..1 << 50), steps, logs, secrets, choice }
    }

    /// A 64-bit number as text, larger than all before it.
    pub(crate) fn id(&mut self) -> String {
        self.last += self.steps.u64(1..1 << 20);
        self.last.to_string()
    }

    /// A log id as the platform writes them: the time to the second, and 20 hexadecimal digits.
    pub(crate) fn logid(&mut self, unix: u64) -> String {
        let (year, month, day, seconds) = civil(unix);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let (high, low) = (self.logs.u64(..), self.logs.u16(..));
        format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{high:016X}{low:04X}")
    }

    /// A token: the prefix and 48 letters and digits.
    pub(crate) fn secret(&mut self, prefix: &str) -> String {
        let rest: String = (0..48).map(|_| self.secrets.alphanumeric()).collect();
        format!("{prefix}{rest}")
    }

    /// What a person types to bind a device: two groups of four letters.
    pub(crate) fn user_code(&mut self) -> String {
        let mut letters = || (0..4).map(|_| self.secrets.uppercase()).collect::<String>();
        format!("{}-{}", letters(), letters())
    }
}

/// Year, month, day and the second of the day of a Unix time, in UTC.
fn civil(unix: u64) -> (u64, u64, u64, u64) {
    // Days since 0000-03-01 in eras of 400 years, years that begin in March: leap days come last and need no cases.
    let days = unix / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day, unix % 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_id_begins_with_the_time() {
        let mut ids = Ids::new(1);
        assert!(ids.logid(0).starts_with("19700101000000"));
        assert!(ids.logid(951_782_400).starts_with("20000229000000"));
        let logid = ids.logid(1_733_844_447);
        assert!(logid.starts_with("20241210152727") && logid.len() == 34, "{logid}");
    }

    #[test]
    fn ids_grow_and_are_numbers_of_64_bits() {
        let mut ids = Ids::new(u64::MAX);
        let list: Vec<i64> = (0..1000).map(|_| ids.id().parse().expect("a number")).collect();
        assert!(list.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut ids = Ids::new(seed);
            (ids.id(), ids.logid(0), ids.secret("czu_"), ids.user_code())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
