-- Takes a job in, unless its id is known.
-- KEYS: jobs, known. ARGV: id, payload, capacity. Answers 1 queued, 0 known, -1 full.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
    return 0
end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[3]) then
    return -1
end
redis.call('ZADD', KEYS[2], '+inf', ARGV[1])
redis.call('XADD', KEYS[1], '*', 'id', ARGV[1], 'payload', ARGV[2], 'tries', '0')
return 1
