#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coze_tests::fuzz::standard_webhooks(data);
});
