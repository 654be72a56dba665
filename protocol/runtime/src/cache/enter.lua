-- The answer, or else the lease: taken where it is free, or the asker's own. KEYS: answer, lease. ARGV: job, ms.
-- Returns the answer and nothing, or nothing and the holder.
local answer = redis.call('GET', KEYS[1])
if answer then
  return {answer, false}
end
local holder = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return {false, holder or ARGV[1]}
