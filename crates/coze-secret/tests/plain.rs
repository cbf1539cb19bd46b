//! What reading costs.

use std::hint::black_box;

use coze_secret::{Secret, SecretBytes};

#[test]
fn reading_allocates_nothing() {
    let (mut rotor, secret) = Secret::rotating("test", SecretBytes::new("1"));
    rotor.publish(SecretBytes::new("2"));
    // The first reading of a thread sets up the thread's own slots.
    black_box(secret.current().expect("there"));
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            black_box(secret.current().expect("there"));
            black_box(secret.read(|versions| versions.iter().any(|version| version.matches(b"1"))));
            black_box(secret.health());
        }
    });
    assert_eq!(counted.count_total, 0);
}
