-- Whether this very process of Redis is known to hold every session. KEYS: mark. A restart or a failover may have lost
-- the latest writes, whatever the mark says, so the mark names the process. ARGV: 1 'look' or 'set'.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or 'unknown'
if ARGV[1] == 'set' then
  redis.call('SET', KEYS[1], run)
end
return redis.call('GET', KEYS[1]) == run and 1 or 0
