-- Takes the lease where it is free or the asker's own. KEYS: lease. ARGV: job, ms. Returns the holder.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return holder
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
