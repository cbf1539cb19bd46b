-- Notes how a try ended, if it is the one that counts.
-- KEYS: jobs, known, dead. ARGV: group, consumer, entry, how (done, again, dead), reason, attempt, most tries, ms to remember, most dead.
-- Answers 1 if it was given up, else 0.
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if pending.err or #pending == 0 then
    return 0
end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
local job = {}
for i = 1, #entry[2], 2 do
    job[entry[2][i]] = entry[2][i + 1]
end
-- It may be a later try by the same process that has it now.
if tonumber(job['tries']) + pending[1][4] ~= tonumber(ARGV[6]) then
    return 0
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
if ARGV[4] == 'done' then
    local time = redis.call('TIME')
    redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[8], job['id'])
    return 0
end
if ARGV[4] == 'again' and tonumber(ARGV[6]) < tonumber(ARGV[7]) then
    redis.call('XADD', KEYS[1], '*', 'id', job['id'], 'payload', job['payload'], 'tries', ARGV[6])
    return 0
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], '*', 'id', job['id'], 'payload', job['payload'], 'reason', ARGV[5])
redis.call('ZREM', KEYS[2], job['id'])
return 1
